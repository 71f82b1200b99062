"""From a comparison's recipe to the list of trainings it stands for. Nothing is run here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uhkd.commands.comparing.tuning import changes_tried
from uhkd.methods import check
from uhkd.recipe import CompareRecipe, DistillRecipe, FinetuneRecipe, RecipeError, build, find_recipe, load_yaml
from uhkd.runs import RunFolder

TUNING_SEED = 1000  # settings are chosen by a seed that no table shows


@dataclass(frozen=True)
class Task:
    """One training: a teacher (its words name a `model`), a setting tried, or a cell of the table.

    name: its folder below the comparison's. after: tasks that must be done first. choices: changes by the name of the task
    that tries them first; those of the best on the held-out part are added to `words`. measured: its accuracy on the test
    part is wanted too.
    """

    name: str
    words: dict[str, Any]
    after: tuple[str, ...] = ()
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: bool = False


@dataclass(frozen=True)
class Cell:
    """Where a task stands in the table."""

    pair: str
    method: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """All tasks in the order of work, and what the table is made of."""

    tasks: tuple[Task, ...]
    cells: dict[str, Cell]
    trials: dict[str, Cell]  # settings tried, by task
    teachers: dict[str, str]  # pair -> where its teacher is or will be: a folder, or a network's name


def make_plan(recipe: CompareRecipe, out: Path) -> Plan:
    """Every task of a comparison, all words checked.

    Cells come seed by seed, so that an unfinished comparison holds whole rounds.

    Raises:
        RecipeError: listing what is wrong with any recipe, method, setting or teacher.
    """
    problems: list[str] = []
    pairs = {name: load_yaml(find_recipe(said)) for name, said in zip(_names(recipe.pairs), recipe.pairs, strict=True)}
    teachers, taught = _teachers(recipe, pairs, out)
    tasks = {task.name: task for task in taught.values()}
    trials: dict[str, Cell] = {}
    cells: dict[str, Cell] = {}
    choices: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    students: list[Task] = []
    for pair, own in pairs.items():
        for label in recipe.methods:
            words = _student(recipe, own, label, teachers[pair])
            try:
                checked = build(DistillRecipe, words)
                check(checked.method, checked.settings, checked.weights)
            except ValueError as error:
                problems += [f"{pair} by {label}: {line}" for line in str(error).split("\n")]
                continue
            if recipe.tune and label not in recipe.variants:
                tried = changes_tried(checked, recipe.tune)
                named = {f"tune/{pair}/{label}/setting-{i}": change for i, change in enumerate(tried)}
                choices[pair, label] = named
                for name, change in named.items():
                    trials[name] = Cell(pair, label, TUNING_SEED)
                    tuned = merged(words, change) | {"seed": TUNING_SEED}
                    students.append(Task(name, tuned, _teacher_first(words, taught.get(pair))))
    for seed in range(recipe.seeds):
        for pair, own in pairs.items():
            for label in recipe.methods:
                words = _student(recipe, own, label, teachers[pair]) | {"seed": seed}
                tried = choices.get((pair, label), {})
                name = f"{pair}/{label}/seed-{seed}"
                cells[name] = Cell(pair, label, seed)
                after = _teacher_first(words, taught.get(pair))
                students.append(Task(name, words, after, tried, measured=recipe.part == "test"))
    if problems:
        raise RecipeError(dict.fromkeys(problems))
    tasks |= {task.name: task for task in students}
    return Plan(tuple(tasks.values()), cells, trials, teachers)


def merged(words: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Words with changes laid over them; settings and weights are joined key by key."""
    out = dict(words)
    for key, value in changes.items():
        out[key] = {**out.get(key, {}), **value} if key in ("settings", "weights") else value
    return out


def _names(pairs: tuple[str, ...]) -> list[str]:
    """Short names, with as much of the path as tells them apart."""
    paths = [Path(pair).with_suffix("") if pair.endswith((".yaml", ".yml")) else Path(pair) for pair in pairs]
    for parts in range(1, 20):
        names = ["-".join(path.parts[-parts:]).replace("/", "") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise RecipeError([f"pairs: expected each once, found {', '.join(pairs)}"])


def _student(recipe: CompareRecipe, own: Mapping[str, Any], label: str, teacher: str) -> dict[str, Any]:
    variant = recipe.variants.get(label, {"method": label})
    words = merged(merged(own, recipe.changes), variant)
    words |= {"teacher": teacher} | ({"data": recipe.data} if recipe.data else {})
    return {k: v for k, v in words.items() if k not in ("out", "resume")}


def _teachers(
    recipe: CompareRecipe, pairs: Mapping[str, Mapping[str, Any]], out: Path
) -> tuple[dict[str, str], dict[str, Task]]:
    """By pair: where its teacher is, and the task that trains it where it is not there yet (one task for equal words)."""
    said = recipe.teachers * len(pairs) if len(recipe.teachers) == 1 else recipe.teachers
    where: dict[str, str] = {}
    taught: dict[str, Task] = {}
    for i, (pair, own) in enumerate(pairs.items()):
        word = said[i] if said else own.get("teacher")
        if word is None:
            raise RecipeError([f"{pair}: its recipe names no teacher; give one with --teachers"])
        words = _finetune_words(str(word))
        if words is None:
            where[pair] = str(word)
            continue
        words = words | recipe.teacher_changes | ({"data": recipe.data} if recipe.data else {})
        build(FinetuneRecipe, words)
        task = Task(f"teachers/{Path(str(word)).stem}", words)
        if any(other.name == task.name and other != task for other in taught.values()):
            raise RecipeError([f"teachers: two different recipes are both called {Path(str(word)).stem!r}; rename one"])
        taught[pair], where[pair] = task, str(out / task.name)
    return where, taught


def _finetune_words(word: str) -> dict[str, Any] | None:
    """The words of a recipe that trains a teacher, or None where `word` is a network that is there already."""
    if RunFolder(word).exists():
        return None
    try:
        words = load_yaml(find_recipe(word))
    except RecipeError:
        if Path(word).suffix in (".yaml", ".yml"):
            raise
        return None  # timm/NAME and the like
    return {k: v for k, v in words.items() if k not in ("out", "resume")} if "model" in words else None


def _teacher_first(words: Mapping[str, Any], teacher: Task | None) -> tuple[str, ...]:
    """The task that trains the teacher comes first; scratch waits for none."""
    return () if teacher is None or words["method"] == "scratch" else (teacher.name,)
