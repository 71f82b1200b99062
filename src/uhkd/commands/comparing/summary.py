"""A comparison's run folders -> one plain mapping that can be committed, and what it says per method."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uhkd.commands.comparing.plan import Plan, TableCell, Task
from uhkd.commands.comparing.queue import TaskStore
from uhkd.commands.comparing.serving import stored_in
from uhkd.reporting.stats import PairedDifference, paired_difference
from uhkd.runs import RunFolder

# what differs between the cells of one pair, or names places on this machine
_CELL = ("out", "seed", "method", "data", "teacher", "student", "settings", "weights", "lr", "resume", "workers")
_CELL += ("start", "student_start", "teacher_start", "teacher_cache", "teacher_views", "balance", "balance_settings")
_BASELINES = ("scratch", "kd")


def gather(plan: Plan, store: TaskStore, *, title: str, part: str, tune: int) -> dict[str, Any]:
    """Everything that the numbers of one table rest on; cells that are not done are left out, failed ones named.

    "warnings" tells what makes rows of one pair incomparable: other images, another teacher, a recipe that differs in more
    than the method, settings that differ between seeds.
    """
    tasks = {task.name: task for task in plan.tasks}
    done = {name: cell for name, cell in plan.cells.items() if store.state(tasks[name]) == "done"}
    results = {name: (store.run(name).read_recipe(), store.run(name).read_result()) for name in done}
    shared = {name: _shared(*results[name]) for name in done}
    plain = sorted(done, key=lambda name: done[name].variant)  # what a pair shares is said by methods without own words
    pairs = {pair: shared[next(n for n in plain if done[n].pair == pair)] for pair in plan.teachers if _any(done, pair)}
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
            | {k: recipe[k] for k in ("balance", "balance_settings") if k in recipe}  # runs of older versions have none
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
        "pairs": {pair: own | {"teacher": _teacher(plan, store, pair, runs, part)} for pair, own in pairs.items()},
        "environments": environments,
        "caches": _caches(plan, store),
        "runs": runs,
        "tuning": _trials(plan, store, tasks),
        "warnings": warnings + _mixed(runs),
        "missing": {name: store.failure(name) or "not run yet" for name in plan.cells if name not in done},
    }


def _caches(plan: Plan, store: TaskStore) -> list[dict[str, Any]]:
    """What it took to store teachers' signals; their trainings' own times leave the teacher out."""
    known = stored_in(store.out)
    return [{"name": c.name, "meant_for": len(c.serves), **known[c.name]} for c in plan.caches if c.name in known]


def _any(done: Mapping[str, TableCell], pair: str) -> bool:
    return any(cell.pair == pair for cell in done.values())


def _shared(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs of a pair must have in common."""
    facts = {
        "student": recipe["student"],
        **{k: result[k] for k in ("parameters", "data", "data_fingerprint", "train_images")},
    }
    return facts | {"recipe": {k: v for k, v in recipe.items() if k not in _CELL}}


def _flat(shared: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in shared.items() if k != "recipe"} | dict(shared["recipe"])


def _mixed(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs where it must not: the teacher within a pair, settings between the seeds of a method, the code."""
    notes = []
    teachers: dict[str, set[str]] = {}
    settings_seen: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        if run["teacher"] is not None:
            teachers.setdefault(run["pair"], set()).add(run["teacher"])
        own = ("lr", "settings", "weights", "balance", "balance_settings")
        settings = json.dumps([run.get(key) for key in own], sort_keys=True)
        settings_seen.setdefault((run["pair"], run["method"]), set()).add(settings)
    notes += [
        f"runs of {pair} learned from {len(found)} different teachers"
        for pair, found in teachers.items()
        if len(found) > 1
    ]
    notes += [
        f"seeds of {method} on {pair} have different settings"
        for (pair, method), found in settings_seen.items()
        if len(found) > 1
    ]
    commits = sorted({str(run["commit"]) for run in runs})
    return [*notes, *([f"runs come from several commits: {', '.join(commits)}"] if len(commits) > 1 else [])]


def _teacher(plan: Plan, store: TaskStore, pair: str, runs: Sequence[Mapping[str, Any]], part: str) -> dict[str, Any]:
    """The teacher of a pair: its accuracy on the images of the table (None: not measured), and how it was trained."""
    metrics = next((run["teacher_metrics"] for run in runs if run["pair"] == pair and run["teacher_metrics"]), None)
    facts: dict[str, Any] = {"accuracy": metrics["accuracy"] if metrics and part == "val" else None, "part": part}
    folder = RunFolder(plan.teachers[pair])
    if not folder.exists():
        return facts | {"name": plan.teachers[pair]}
    recipe = folder.read_recipe() if folder.started() else {}
    facts["name"] = recipe.get("model", folder.read_card()["name"])
    if folder.result.is_file():
        result = folder.read_result()
        facts |= {"recipe": {k: v for k, v in recipe.items() if k not in _CELL}, "lr": recipe.get("lr")}
        facts |= {"parameters": result["parameters"], "train_images": result["train_images"]}
        facts |= {"commit": result["environment"]["commit"], "seed": recipe.get("seed")}
    if part == "test":
        settings_seen = next(
            task.options for task in plan.tasks if task.name in plan.cells and plan.cells[task.name].pair == pair
        )
        facts["accuracy"] = _on_test(store, folder, settings_seen.get("data"))
    return facts


def _on_test(store: TaskStore, folder: RunFolder, data: str | None) -> float | None:
    """A teacher's accuracy on the test part of a comparison's data, measured once; None where its head does not fit."""
    from uhkd.commands.judging import measure

    file = store.out / "teachers-on-test.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    key = f"{folder.path} of {folder.weights.stat().st_mtime_ns} on {data}"
    if key not in known:
        try:
            known[key] = measure(str(folder.path), data, split="test")[0].metrics["accuracy"]
        except ValueError:  # other classes: in training a linear probe stands in for its head
            known[key] = None
        RunFolder(store.out).write_json(file.name, known)
    return known[key]


def _trials(plan: Plan, store: TaskStore, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Every setting tried, with its accuracy on the held-out part, and which of them were taken."""
    choices = {tuple(task.choices): task.choices for task in plan.tasks if task.choices}
    out: list[dict[str, Any]] = []
    for group in choices.values():
        ended = all(store.state(tasks[name]) in ("done", "failed") for name in group)
        taken = store.taken(group, decide=ended)
        for name, change in group.items():
            done = store.state(tasks[name]) == "done"
            accuracy = store.run(name).read_result()["metrics"]["val_accuracy"] if done else None
            facts = {"pair": plan.trials[name].pair, "method": plan.trials[name].method, "changes": change}
            facts |= {"accuracy": accuracy, "taken": name == taken}
            out.append(facts | ({} if done else {"why": store.failure(name) or "not run yet"}))
    return out


@dataclass(frozen=True)
class TableRow:
    """One method on one pair."""

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
        """Accuracy in points over training hours."""
        return self.mean / self.hours


def lines(summary: Mapping[str, Any]) -> list[TableRow]:
    """One line a pair and method, in order of first appearance."""
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
    """What the numbers say of a method against each other one, paired by seed, whichever way it falls."""
    found = {(line.pair, line.method): line.accuracy for line in lines(summary)}
    for pair in summary["pairs"]:
        for _, rival in [key for key in found if key[0] == pair and key[1] != method and (pair, method) in found]:
            notes = paired_difference(found[pair, method], found[pair, rival])
            if notes is None:
                yield f"{pair}: {method} and {rival} have no seed in common"
            else:
                width = f" ± {notes.half:.2f}" if notes.half is not None and notes.seeds > 2 else ""
                yield f"{pair}: {method} minus {rival} {notes.mean:+.2f}{width} points ({notes.seeds} seeds: {notes.verdict})"
