"""Summary of the run folders of a comparison as plain data for version control, and its statistics per method."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uhkd.commands.comparing.plan import Plan, Task
from uhkd.commands.comparing.shared_cache import cache_usage
from uhkd.commands.comparing.task_store import TaskStore
from uhkd.console import log_info
from uhkd.data import Columns
from uhkd.errors import UhkdError
from uhkd.reporting.stats import PairedDifference, paired_difference
from uhkd.runs import RunFolder
from uhkd.training.run_evaluation import measure

# fields that differ between the cells of one pair, or contain paths of this machine
_CELL = ("out", "seed", "method", "data", "teacher", "student", "settings", "weights", "lr", "resume", "workers")
_CELL += ("start", "student_start", "teacher_start", "teacher_cache", "teacher_views", "balance", "balance_settings")
_BASELINES = ("scratch", "kd")


def gather(plan: Plan, store: TaskStore, *, title: str, part: str, tune: int) -> dict[str, Any]:
    """Collect all results and their conditions. Cells that are not done are listed under "missing" with the reason.

    "warnings" lists what makes rows of a pair incomparable: other images, another teacher, a recipe that differs in more than
    the method, settings that differ between seeds, several commits.
    """
    tasks = {task.name: task for task in plan.tasks}
    done = {name: cell for name, cell in plan.cells.items() if store.state(tasks[name]) == "done"}
    results = {name: (store.run(name).read_recipe(), store.run(name).read_result()) for name in done}
    shared = {name: _shared(*results[name]) for name in done}
    by_variant = sorted(done, key=lambda name: done[name].variant)  # a method that is no variant defines the reference
    first = {done[name].pair: name for name in reversed(by_variant)}
    pairs = {pair: shared[first[pair]] for pair in plan.teachers if pair in first}
    environments: list[dict[str, Any]] = []
    runs, warnings = [], []
    for name, cell in done.items():
        recipe, result = results[name]
        reference = _flat(pairs[cell.pair])
        differing = {key: value for key, value in _flat(shared[name]).items() if reference.get(key) != value}
        if differing and not cell.variant:
            warnings.append(f"{name} differs from other runs of {cell.pair} in {', '.join(differing)}")
        machine = {k: v for k, v in result["environment"].items() if k not in ("command", "commit")}
        if machine not in environments:
            environments.append(machine)
        runs.append(
            {"pair": cell.pair, "method": cell.method, "seed": cell.seed, "accuracy": store.accuracy(tasks[name])}
            | {"joined": recipe["method"], **{k: recipe[k] for k in ("lr", "settings", "weights")}}
            | {k: recipe[k] for k in ("balance", "balance_settings") if k in recipe}  # not in runs of older versions
            | {"effective": result.get("methods"), "differs": differing, "teacher": result.get("teacher_fingerprint")}
            | {"seconds": result["metrics"]["seconds"], "extra_parameters": result["extra_parameters"]}
            | {"metrics": result["metrics"], "commit": result["environment"]["commit"]}
            | {"environment": environments.index(machine), "teacher_metrics": result.get("teacher_metrics")}
            | {"teacher_cache": result.get("teacher_cache")}
        )
    return {
        "title": title,
        "part": part,
        "settings_tried": tune or 1,
        "pairs": {pair: facts | {"teacher": _teacher(plan, store, pair, runs, part)} for pair, facts in pairs.items()},
        "environments": environments,
        "caches": _caches(plan, store),
        "runs": runs,
        "tuning": _trials(plan, store, tasks),
        "warnings": warnings + _inconsistencies(runs),
        "missing": {name: store.failure(name) or "not run yet" for name in plan.cells if name not in done},
    }


def _caches(plan: Plan, store: TaskStore) -> list[dict[str, Any]]:
    """Return size and creation time of the caches; the times of the trainings that use them exclude the teacher."""
    usage = cache_usage(store.path)
    return [{"name": c.name, "meant_for": len(c.serves), **usage[c.name]} for c in plan.caches if c.name in usage]


def _shared(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that must be equal in all runs of a pair."""
    facts = {k: result[k] for k in ("parameters", "data", "data_fingerprint", "train_images")}
    return {"student": recipe["student"], **facts, "recipe": {k: v for k, v in recipe.items() if k not in _CELL}}


def _flat(shared: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in shared.items() if k != "recipe"} | dict(shared["recipe"])


def _inconsistencies(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe differences that must not exist: teachers within a pair, settings between seeds of a method, commits."""
    teachers: dict[str, set[str]] = {}
    settings: dict[tuple[str, str], set[str]] = {}
    keys = ("lr", "settings", "weights", "balance", "balance_settings")
    for run in runs:
        if run["teacher"] is not None:
            teachers.setdefault(run["pair"], set()).add(run["teacher"])
        fields = json.dumps([run.get(key) for key in keys], sort_keys=True)
        settings.setdefault((run["pair"], run["method"]), set()).add(fields)
    warnings = [f"runs of {pair} have {len(x)} different teachers" for pair, x in teachers.items() if len(x) > 1]
    warnings += [f"seeds of {m} on {pair} have different settings" for (pair, m), x in settings.items() if len(x) > 1]
    commits = sorted({str(run["commit"]) for run in runs})
    return [*warnings, *([f"runs come from several commits: {', '.join(commits)}"] if len(commits) > 1 else [])]


def _teacher(plan: Plan, store: TaskStore, pair: str, runs: Sequence[Mapping[str, Any]], part: str) -> dict[str, Any]:
    """Return the facts of the teacher of a pair: accuracy on the split of the table (None: not measured), training."""
    metrics = next((run["teacher_metrics"] for run in runs if run["pair"] == pair and run["teacher_metrics"]), None)
    facts: dict[str, Any] = {"accuracy": metrics["accuracy"] if metrics and part == "val" else None, "part": part}
    folder = RunFolder(plan.teachers[pair])
    if not folder.has_model():
        return facts | {"name": plan.teachers[pair]}
    recipe = folder.read_recipe() if folder.started() else {}
    facts["name"] = recipe.get("model", folder.read_config()["name"])
    if folder.result.is_file():
        result = folder.read_result()
        facts |= {"recipe": {k: v for k, v in recipe.items() if k not in _CELL}, "lr": recipe.get("lr")}
        facts |= {"parameters": result["parameters"], "train_images": result["train_images"]}
        facts |= {"commit": result["environment"]["commit"], "seed": recipe.get("seed")}
    if part == "test":
        cells = (task for task in plan.tasks if task.name in plan.cells)
        data = next(Columns.of(task.options) for task in cells if plan.cells[task.name].pair == pair)
        facts["accuracy"] = _test_accuracy(store, folder, data)
    return facts


def _test_accuracy(store: TaskStore, folder: RunFolder, data: Any) -> float | None:
    """Return the test accuracy of a teacher, once per comparison; None, with a message, if it cannot be measured."""
    file = store.path / "teachers-on-test.json"
    accuracies = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    key = f"{folder.path} of {folder.weights.stat().st_mtime_ns} on {data}"
    if key not in accuracies:
        try:
            accuracies[key] = measure(str(folder.path), data, split="test")[0].metrics["accuracy"]
        except UhkdError as error:  # such as other classes: in trainings a linear probe replaces its head
            log_info(f"the teacher {folder.path} was not measured on the test split: {error}")
            accuracies[key] = None
        RunFolder(store.path).write_json(file.name, accuracies)
    return accuracies[key]


def _trials(plan: Plan, store: TaskStore, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Return every setting tried with its held-out accuracy, and whether it was chosen ("taken")."""
    groups = {tuple(task.choices): task.choices for task in plan.tasks if task.choices}
    trials: list[dict[str, Any]] = []
    for choices in groups.values():
        ended = all(store.state(tasks[name]) in ("done", "failed") for name in choices)
        chosen = store.chosen(choices, decide=ended)
        for name, change in choices.items():
            done = store.state(tasks[name]) == "done"
            accuracy = store.run(name).read_result()["metrics"]["val_accuracy"] if done else None
            facts = {"pair": plan.trials[name].pair, "method": plan.trials[name].method, "changes": change}
            facts |= {"accuracy": accuracy, "taken": name == chosen}
            trials.append(facts | ({} if done else {"why": store.failure(name) or "not run yet"}))
    return trials


@dataclass(frozen=True)
class TableRow:
    """Results of one method on one pair."""

    pair: str
    method: str
    accuracy: dict[int, float]  # by seed, as a fraction
    hours: float  # training time, mean over seeds
    extra_parameters: int
    settings_tried: int
    gaps: dict[str, PairedDifference | None]  # to scratch and KD

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return 100 * statistics.fmean(self.accuracy.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds in points; None for one seed."""
        return 100 * statistics.stdev(self.accuracy.values()) if len(self.accuracy) > 1 else None

    @property
    def per_hour(self) -> float:
        """Mean accuracy in percent per training hour."""
        return self.mean / self.hours


def table_rows(summary: Mapping[str, Any]) -> list[TableRow]:
    """Return one row per pair and method, in order of first appearance."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in summary["runs"]:
        cells.setdefault((run["pair"], run["method"]), []).append(run)
    scores = {key: {run["seed"]: run["accuracy"] for run in runs} for key, runs in cells.items()}
    tuned = {(trial["pair"], trial["method"]) for trial in summary["tuning"]}
    return [
        TableRow(
            pair,
            method,
            dict(sorted(scores[pair, method].items())),
            statistics.fmean(run["seconds"] for run in runs) / 3600,
            runs[0]["extra_parameters"],
            summary["settings_tried"] if (pair, method) in tuned else 1,
            {
                base: paired_difference(scores[pair, method], scores[pair, base])
                if base != method and (pair, base) in scores
                else None
                for base in _BASELINES
            },
        )
        for (pair, method), runs in cells.items()
    ]


def verdicts(summary: Mapping[str, Any], method: str = "uhkd") -> Iterator[str]:
    """Yield a line about the difference, paired by seed, of a method to each other method of each pair."""
    accuracies = {(row.pair, row.method): row.accuracy for row in table_rows(summary)}
    for pair in summary["pairs"]:
        rivals = [other for where, other in accuracies if where == pair and other != method]
        for rival in rivals if (pair, method) in accuracies else ():
            gap = paired_difference(accuracies[pair, method], accuracies[pair, rival])
            if gap is None:
                yield f"{pair}: {method} and {rival} have no seed in common"
            else:
                width = f" ± {gap.half:.2f}" if gap.half is not None and gap.seeds > 2 else ""
                yield f"{pair}: {method} minus {rival} {gap.mean:+.2f}{width} points ({gap.seeds} seeds: {gap.conclusion})"
