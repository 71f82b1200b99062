"""Planning of a comparison: from its recipe to the list of its trainings."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uhkd.commands.comparing.cache_plan import shared_caches
from uhkd.commands.comparing.naming import finetune_options, look_up, pair_names
from uhkd.commands.comparing.search import changes_tried
from uhkd.commands.comparing.stated import stated_length
from uhkd.errors import UhkdError
from uhkd.methods import method_names, parse_methods
from uhkd.models.names import parse_name
from uhkd.recipe import (
    CompareRecipe,
    DistillRecipe,
    FinetuneRecipe,
    RecipeError,
    TrainRecipe,
    build,
    find_recipe,
    load_yaml,
)
from uhkd.runs.comparison import CACHES, TASK_FILES, TUNING

TUNING_SEED = 1000  # not a seed of any table
_RESERVED = {"teachers", TUNING, CACHES, *TASK_FILES}  # names of folders


@dataclass(frozen=True)
class Task:
    """A training of a teacher (`options` has `model`), of a setting tried or of a table cell; or a cache (`views`).

    name: its folder in that of the comparison. after: tasks that must be done before. choices: changes by name of the task that
    tries them; those of the task with the best held-out accuracy are added to `options`. measured: the accuracy on the test
    split is needed too. cache: task whose cache is used if it can be created; not part of `options`, because it changes only
    rounding. serves: names of the trainings that use this cache.
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
    """Position of a training in the table. variant: its method comes from `variants`."""

    pair: str
    method: str
    seed: int
    variant: bool = False


@dataclass(frozen=True)
class Plan:
    """All trainings in order of execution, the cells of the table, and the shared caches."""

    tasks: tuple[Task, ...]
    cells: dict[str, TableCell]
    trials: dict[str, TableCell]  # settings tried, by task name
    teachers: dict[str, str]  # by pair: a run folder, which may not exist yet, or the name of a network
    caches: tuple[Task, ...] = ()
    live: dict[str, str] = field(default_factory=dict)  # reason of each student without a cache; {} if caching is off

    @property
    def work(self) -> tuple[Task, ...]:
        """Trainings and caches in order of execution: a cache precedes the first training that it serves."""
        due = {cache.serves[0]: cache for cache in self.caches}
        return tuple(t for task in self.tasks for t in (*([due[task.name]] if task.name in due else []), task))


def make_plan(recipe: CompareRecipe, out: Path) -> Plan:
    """Return all tasks of a comparison after checking all their options.

    Cells are ordered by seed, so that an interrupted comparison has complete rounds.

    Raises:
        RecipeError: a recipe, method, setting or teacher is invalid; lists all problems.
    """
    names = pair_names(recipe.pairs)
    pairs = {name: load_yaml(find_recipe(path)) for name, path in zip(names, recipe.pairs, strict=True)}
    if problems := [*_variant_problems(recipe), *_pair_problems(recipe, pairs)]:
        raise RecipeError(problems)
    teachers, teacher_tasks = _teachers(recipe, pairs, out)
    tasks = {task.name: task for task in teacher_tasks.values()}
    trials: dict[str, TableCell] = {}
    cells: dict[str, TableCell] = {}
    choices: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    students: list[Task] = []
    for pair, pair_recipe in pairs.items():
        for label in recipe.methods:
            options = _student(recipe, pair_recipe, label, teachers[pair])
            if invalid := _problems_of(options, f"{pair} by {label}"):
                problems += invalid
            elif recipe.tune and label not in recipe.variants:
                changes = changes_tried(build(DistillRecipe, options), recipe.tune)
                choices[pair, label] = {f"tune/{pair}/{label}/setting-{i}": change for i, change in enumerate(changes)}
                for name, change in choices[pair, label].items():
                    trials[name] = TableCell(pair, label, TUNING_SEED)
                    tuned = merged(options, change) | {"seed": TUNING_SEED}
                    problems += _problems_of(tuned, f"{pair} by {label}, setting tried {change}")
                    students.append(Task(name, tuned, _teacher_first(options, teacher_tasks.get(pair))))
    for seed in range(recipe.seeds):
        for pair, pair_recipe in pairs.items():
            for label in recipe.methods:
                options = _student(recipe, pair_recipe, label, teachers[pair]) | {"seed": seed}
                name = f"{pair}/{label}/seed-{seed}"
                cells[name] = TableCell(pair, label, seed, label in recipe.variants)
                after = _teacher_first(options, teacher_tasks.get(pair))
                tried = choices.get((pair, label), {})
                students.append(Task(name, options, after, tried, measured=recipe.split == "test"))
    if problems:
        raise RecipeError(dict.fromkeys(problems))
    students = [replace(task, options=task.options | stated_length(task.options)) for task in students]
    shared, live = shared_caches({task.name: task.options for task in students}) if recipe.cache == "auto" else ([], {})
    cached = {name: cache.name for cache in shared for name in cache.serves}
    tasks |= {task.name: replace(task, cache=cached.get(task.name)) for task in students}
    caches = [Task(c.name, c.options, tasks[c.serves[0]].after, serves=c.serves) for c in shared]
    return Plan(tuple(tasks.values()), cells, trials, teachers, tuple(caches), live)


def _pair_problems(recipe: CompareRecipe, pairs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield problems of the pairs: no student, a reserved name, several teachers, or no labels to evaluate with."""
    lacking = [name for name in pairs if "student" not in pairs[name]]
    yield from (f"pairs: {name} is not a recipe of distill (it has no student)" for name in lacking)
    reserved = _RESERVED & {*pairs}
    yield from (f"pairs: {name} is the name of a folder in every comparison; rename the recipe" for name in reserved)
    for pair, pair_recipe in pairs.items():
        options = {**pair_recipe, **recipe.overrides}
        if options.get("teachers") or isinstance(options.get("teacher"), list | tuple):
            yield f"pairs: {pair} has several teachers, a pair of a comparison has one; train it with uhkd distill"
        if options.get("unlabelled") and not options.get("probe_data"):
            yield f"pairs: {pair} trains without labels and cannot be evaluated; set probe_data to labelled images"
        elif options.get("unlabelled") and recipe.split == "test":
            yield f"pairs: {pair} trains without labels and is probed on the held-out split; leave out --split test"


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return options updated by changes; settings and weights are merged key by key."""
    out = dict(options)
    for key, value in changes.items():
        out[key] = {**out.get(key, {}), **value} if key in ("settings", "weights") else value
    return out


def _variant_problems(recipe: CompareRecipe) -> Iterator[str]:
    """Yield names of variants that cannot be names of folders and rows, or that are methods."""
    for name in recipe.variants:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            yield f"variants: {name!r} must consist of letters, digits, '.', '+', '-' and '_'"
    yield from (
        f"variants: {name} is a method; choose another name" for name in recipe.variants if name in method_names()
    )


def _problems_of(options: Mapping[str, Any], where: str) -> list[str]:
    """Return one line per problem of the options of a training."""
    try:
        recipe = build(DistillRecipe, options)
        parse_methods(recipe.method, recipe.settings, recipe.weights)
    except UhkdError as error:
        return [f"{where}: {line}" for line in str(error).split("\n")]
    return _epoch_problems(recipe, where, "overrides")


def _epoch_problems(recipe: TrainRecipe, where: str, option: str) -> list[str]:
    """Return the problem of a training that ends early or keeps its best epoch; `option` of the comparison can change it."""
    given = ["keep=best"] * (recipe.keep == "best") + [f"patience={recipe.patience}"] * (recipe.patience is not None)
    why = f"a comparison measures every training after its last epoch; set {option} keep=last patience=none"
    return [f"{where}: {' and '.join(given)}: {why}"] if given else []


def _student(recipe: CompareRecipe, pair_recipe: Mapping[str, Any], label: str, teacher: str) -> dict[str, Any]:
    variant = recipe.variants.get(label, {"method": label})
    options = merged(merged(pair_recipe, recipe.overrides), variant) | {"teacher": teacher}
    return {k: v for k, v in _with_data(options, recipe).items() if k not in ("out", "resume")}


def _with_data(options: dict[str, Any], recipe: CompareRecipe) -> dict[str, Any]:
    data = recipe.data or options.get("data")
    return options | {"data": _absolute_data(data)} if data else options


def _absolute_data(data: str) -> str:
    """Return data with an absolute path, valid for workers started in any folder."""
    kind, colon, root = data.partition(":")
    if colon and kind == "cifar100":
        return f"{kind}:{Path(root).expanduser().resolve()}"
    path = Path(data).expanduser()
    return data if data in ("digits", "cifar100") or not path.exists() else str(path.resolve())


def _teachers(
    recipe: CompareRecipe, pairs: Mapping[str, Mapping[str, Any]], out: Path
) -> tuple[dict[str, str], dict[str, Task]]:
    """Return by pair the folder or name of its teacher, and the task that trains it if needed (one task for equal options)."""
    names = recipe.teachers * len(pairs) if len(recipe.teachers) == 1 else recipe.teachers
    needed = {recipe.variants.get(label, {}).get("method", label) for label in recipe.methods} != {"scratch"}
    teachers: dict[str, str] = {}
    tasks: dict[str, Task] = {}
    for i, (pair, pair_recipe) in enumerate(pairs.items()):
        name = names[i] if names else pair_recipe.get("teacher")
        if name is None:
            raise RecipeError([f"{pair}: its recipe names no teacher; choose one with --teachers"])
        options = finetune_options(str(name))
        if options is None:
            teachers[pair] = str(name)
            if needed and (source := look_up(parse_name, teachers[pair], pair)).library == "run":
                teachers[pair] = str(Path(source.name).resolve())
            continue
        options = _with_data(options | recipe.teacher_overrides, recipe)
        if problems := _epoch_problems(build(FinetuneRecipe, options), str(name), "teacher_overrides"):
            raise RecipeError(problems)
        task = Task(f"teachers/{Path(str(name)).stem}", options)
        if any(other.name == task.name and other != task for other in tasks.values()):
            raise RecipeError([f"teachers: two different recipes are both called {Path(str(name)).stem!r}; rename one"])
        tasks[pair], teachers[pair] = task, str(out / task.name)
    return teachers, tasks


def _teacher_first(options: Mapping[str, Any], teacher: Task | None) -> tuple[str, ...]:
    """Return the name of the task that trains the teacher; scratch needs none."""
    return () if teacher is None or options["method"] == "scratch" else (teacher.name,)
