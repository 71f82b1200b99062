"""From a comparison's recipe to the list of trainings it stands for. Nothing is run here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uhkd.commands.comparing.caches import shared_caches
from uhkd.commands.comparing.naming import finetune_options, look_up, pair_names
from uhkd.commands.comparing.tuning import changes_tried
from uhkd.methods import method_names, parse_methods
from uhkd.models.names import parse
from uhkd.recipe import CompareRecipe, DistillRecipe, FinetuneRecipe, RecipeError, build, find_recipe, load_yaml

TUNING_SEED = 1000  # settings are chosen by a seed that no table shows
_OWN = {"teachers", "tune", "caches", "plan", "locks", "logs", "failed", "chosen"}  # beside the pairs', see `TaskStore`


@dataclass(frozen=True)
class Task:
    """One training: a teacher (its words name a `model`), a setting tried, or a cell of the table; or a cache (`views`).

    name: its folder below the comparison's. after: tasks that must be done first. choices: changes by the name of the task
    that tries them first; those of the best on the held-out part are added to `options`. measured: its accuracy on the test
    part is wanted too. cache: the one it waits for and learns from, if that can be made; no part of `options`, as it changes
    nothing but roundings. serves: trainings that a cache is made for.
    """

    name: str
    options: dict[str, Any]
    after: tuple[str, ...] = ()
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: bool = False
    cache: str | None = None
    serves: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableCell:
    """Where a task stands in the table. variant: its method is one with words of its own."""

    pair: str
    method: str
    seed: int
    variant: bool = False


@dataclass(frozen=True)
class Plan:
    """All trainings in the order of work, what the table is made of, and the caches that trainings share."""

    tasks: tuple[Task, ...]
    cells: dict[str, TableCell]
    trials: dict[str, TableCell]  # settings tried, by task
    teachers: dict[str, str]  # pair -> where its teacher is or will be: a folder, or a network's name
    caches: tuple[Task, ...] = ()
    live: dict[str, str] = field(default_factory=dict)  # why students go without a cache; empty where none is wanted

    @property
    def work(self) -> tuple[Task, ...]:
        """Trainings and caches in the order of work: a cache comes before the first that it serves."""
        due = {cache.serves[0]: cache for cache in self.caches}
        return tuple(t for task in self.tasks for t in (*([due[task.name]] if task.name in due else []), task))


def make_plan(recipe: CompareRecipe, out: Path) -> Plan:
    """Every task of a comparison, all words checked.

    Cells come seed by seed, so that an unfinished comparison holds whole rounds.

    Raises:
        RecipeError: listing what is wrong with any recipe, method, setting or teacher.
    """
    problems = _misnamed(recipe)
    pairs = {
        name: load_yaml(find_recipe(teachers))
        for name, teachers in zip(pair_names(recipe.pairs), recipe.pairs, strict=True)
    }
    problems += [
        f"pairs: {name} is no recipe of distill (it has no student)" for name in pairs if "student" not in pairs[name]
    ]
    problems += [
        f"pairs: {name} is the name of a folder of every comparison's own; rename the recipe"
        for name in _OWN & {*pairs}
    ]
    problems += _beyond(recipe, pairs)
    if problems:
        raise RecipeError(problems)
    teachers, teacher_tasks = _teachers(recipe, pairs, out)
    tasks = {task.name: task for task in teacher_tasks.values()}
    trials: dict[str, TableCell] = {}
    cells: dict[str, TableCell] = {}
    choices: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    students: list[Task] = []
    for pair, own in pairs.items():
        for label in recipe.methods:
            options = _student(recipe, own, label, teachers[pair])
            if wrong := _problems_of(options, f"{pair} by {label}"):
                problems += wrong
            elif recipe.tune and label not in recipe.variants:
                tried = changes_tried(build(DistillRecipe, options), recipe.tune)
                named = {f"tune/{pair}/{label}/setting-{i}": change for i, change in enumerate(tried)}
                choices[pair, label] = named
                for name, change in named.items():
                    trials[name] = TableCell(pair, label, TUNING_SEED)
                    tuned = merged(options, change) | {"seed": TUNING_SEED}
                    problems += _problems_of(tuned, f"{pair} by {label}, setting tried {change}")
                    students.append(Task(name, tuned, _teacher_first(options, teacher_tasks.get(pair))))
    for seed in range(recipe.seeds):
        for pair, own in pairs.items():
            for label in recipe.methods:
                options = _student(recipe, own, label, teachers[pair]) | {"seed": seed}
                tried = choices.get((pair, label), {})
                name = f"{pair}/{label}/seed-{seed}"
                cells[name] = TableCell(pair, label, seed, label in recipe.variants)
                after = _teacher_first(options, teacher_tasks.get(pair))
                students.append(Task(name, options, after, tried, measured=recipe.split == "test"))
    if problems:
        raise RecipeError(dict.fromkeys(problems))
    shared, live = shared_caches({task.name: task.options for task in students}) if recipe.cache == "auto" else ([], {})
    cached = {name: cache.name for cache in shared for name in cache.serves}
    tasks |= {task.name: replace(task, cache=cached.get(task.name)) for task in students}
    caches = [Task(c.name, c.options, tasks[c.serves[0]].after, serves=c.serves) for c in shared]
    return Plan(tuple(tasks.values()), cells, trials, teachers, tuple(caches), live)


def _beyond(recipe: CompareRecipe, pairs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a comparison has no place for: several teachers in a pair, and students without labels that nothing judges."""
    problems = []
    for pair, own in pairs.items():
        options = {**own, **recipe.overrides}
        if options.get("teachers") or isinstance(options.get("teacher"), list | tuple):
            problems.append(
                f"pairs: {pair} has several teachers, and a comparison's pair has one; train it by uhkd distill"
            )
        if options.get("unlabelled") and not options.get("probe_data"):
            problems.append(
                f"pairs: {pair} learns without labels, and nothing judges it; say probe_data, labelled images"
            )
        elif options.get("unlabelled") and recipe.split == "test":
            problems.append(
                f"pairs: {pair} learns without labels and is probed on the held-out part; leave out --split test"
            )
    return problems


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Words with changes laid over them; settings and weights are joined key by key."""
    out = dict(options)
    for key, value in changes.items():
        out[key] = {**out.get(key, {}), **value} if key in ("settings", "weights") else value
    return out


def _misnamed(recipe: CompareRecipe) -> list[str]:
    """Variants become names of folders and rows, so they must be plain and not mean a method already."""
    known = method_names()
    odd = [name for name in recipe.variants if not re.fullmatch(r"\w[\w.+-]*", name)]
    taken = [name for name in recipe.variants if name in known]
    return [f"variants: {name!r} must be a word of letters, digits, '.', '+', '-' and '_'" for name in odd] + [
        f"variants: {name} is a method; choose another name for a method with words of its own" for name in taken
    ]


def _problems_of(options: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with a training's words, a line each."""
    try:
        checked = build(DistillRecipe, options)
        parse_methods(checked.method, checked.settings, checked.weights)
    except ValueError as error:
        return [f"{where}: {line}" for line in str(error).split("\n")]
    return []


def _student(recipe: CompareRecipe, own: Mapping[str, Any], label: str, teacher: str) -> dict[str, Any]:
    variant = recipe.variants.get(label, {"method": label})
    options = merged(merged(own, recipe.overrides), variant) | {"teacher": teacher}
    data = recipe.data or options.get("data")
    options |= {"data": _placed(data)} if data else {}
    return {k: v for k, v in options.items() if k not in ("out", "resume")}


def _placed(data: str) -> str:
    """Data by a path that means the same wherever another worker is started."""
    kind, colon, root = data.partition(":")
    if colon and kind == "cifar100":
        return f"{kind}:{Path(root).expanduser().resolve()}"
    path = Path(data).expanduser()
    return data if data in ("digits", "cifar100") or not path.exists() else str(path.resolve())


def _teachers(
    recipe: CompareRecipe, pairs: Mapping[str, Mapping[str, Any]], out: Path
) -> tuple[dict[str, str], dict[str, Task]]:
    """By pair: where its teacher is, and the task that trains it where it is not there yet (one task for equal words)."""
    teachers = recipe.teachers * len(pairs) if len(recipe.teachers) == 1 else recipe.teachers
    needed = {recipe.variants.get(label, {}).get("method", label) for label in recipe.methods} != {"scratch"}
    where: dict[str, str] = {}
    teacher_tasks: dict[str, Task] = {}
    for i, (pair, own) in enumerate(pairs.items()):
        name = teachers[i] if teachers else own.get("teacher")
        if name is None:
            raise RecipeError([f"{pair}: its recipe names no teacher; give one with --teachers"])
        options = finetune_options(str(name))
        if options is None:
            where[pair] = str(name)
            if needed and (found := look_up(parse, where[pair], pair)).library == "run":
                where[pair] = str(Path(found.name).resolve())
            continue
        options = options | recipe.teacher_overrides
        data = recipe.data or options.get("data")
        options |= {"data": _placed(data)} if data else {}
        build(FinetuneRecipe, options)
        task = Task(f"teachers/{Path(str(name)).stem}", options)
        if any(other.name == task.name and other != task for other in teacher_tasks.values()):
            raise RecipeError([f"teachers: two different recipes are both called {Path(str(name)).stem!r}; rename one"])
        teacher_tasks[pair], where[pair] = task, str(out / task.name)
    return where, teacher_tasks


def _teacher_first(options: Mapping[str, Any], teacher: Task | None) -> tuple[str, ...]:
    """The task that trains the teacher comes first; scratch waits for none."""
    return () if teacher is None or options["method"] == "scratch" else (teacher.name,)
