"""A comparison's run folders -> one plain mapping that can be committed, and what it says per method."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t

from uhkd.commands.comparing.plan import Plan, Task
from uhkd.commands.comparing.queue import Board
from uhkd.runs import RunFolder

# what differs between the cells of one pair, or names places on this machine
_CELL = ("out", "seed", "method", "data", "teacher", "student", "settings", "weights", "lr", "resume", "workers")
_CELL += ("start", "student_start", "teacher_start")
_BASELINES = ("scratch", "kd")


def gather(plan: Plan, board: Board, *, title: str, part: str, tune: int) -> dict[str, Any]:
    """Everything that the numbers of one table rest on; cells that are not done are left out, failed ones named.

    Raises:
        ValueError: when runs of one pair were trained on other images, or by a recipe that differs in more than the method.
    """
    tasks = {task.name: task for task in plan.tasks}
    pairs: dict[str, dict[str, Any]] = {}
    environments: list[dict[str, Any]] = []
    runs = []
    for name, cell in plan.cells.items():
        if board.state(tasks[name]) != "done":
            continue
        recipe, result = board.run(name).read_recipe(), board.run(name).read_result()
        shared = {"student": recipe["student"], "parameters": result["parameters"], "data": result["data"]}
        shared |= {k: result[k] for k in ("data_fingerprint", "train_images")}
        shared["recipe"] = {k: v for k, v in recipe.items() if k not in _CELL}
        found = pairs.setdefault(cell.pair, shared)
        differing = {k: v for k, v in _flat(shared).items() if _flat(found).get(k) != v}
        mixed = [k for k in differing if k not in tasks[name].words]  # what its words say was meant: a variant
        if mixed:
            raise ValueError(f"{name} differs from the other runs of {cell.pair} in {', '.join(mixed)}")
        machine = {k: v for k, v in result["environment"].items() if k not in ("command", "commit")}
        if machine not in environments:
            environments.append(machine)
        runs.append(
            {"pair": cell.pair, "method": cell.method, "seed": cell.seed, "accuracy": board.accuracy(tasks[name])}
            | {"joined": recipe["method"], **{k: recipe[k] for k in ("lr", "settings", "weights")}}
            | {"differs": differing}
            | {"seconds": result["metrics"]["seconds"], "extra_parameters": result["extra_parameters"]}
            | {"metrics": result["metrics"], "commit": result["environment"]["commit"]}
            | {"environment": environments.index(machine), "teacher_metrics": result.get("teacher_metrics")}
        )
    return {
        "title": title,
        "part": part,
        "settings_tried": tune or 1,
        "pairs": {pair: own | {"teacher": _teacher(plan, board, pair, runs, part)} for pair, own in pairs.items()},
        "environments": environments,
        "runs": runs,
        "tuning": _trials(plan, board, tasks),
        "missing": {
            name: board.failure(name) or "not run yet" for name in plan.cells if board.state(tasks[name]) != "done"
        },
    }


def _flat(shared: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in shared.items() if k != "recipe"} | dict(shared["recipe"])


def _teacher(plan: Plan, board: Board, pair: str, runs: Sequence[Mapping[str, Any]], part: str) -> dict[str, Any]:
    """The teacher of a pair: its accuracy on the same images, and how it was trained where its folder says so."""
    told = next((run["teacher_metrics"] for run in runs if run["pair"] == pair and run["teacher_metrics"]), None)
    facts: dict[str, Any] = {"accuracy": told["accuracy"] if told else None, "part": "val"}
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
        facts |= {"accuracy": _on_test(board, folder), "part": "test"}
    return facts


def _on_test(board: Board, folder: RunFolder) -> float:
    """A given teacher's accuracy on the test part, measured once."""
    from uhkd.commands.judging import measure

    kept = board.out / "teachers-on-test.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    if str(folder.path) not in known:
        known[str(folder.path)] = measure(str(folder.path), split="test")[0].metrics["accuracy"]
        RunFolder(board.out).write_json(kept.name, known)
    return known[str(folder.path)]


def _trials(plan: Plan, board: Board, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Every setting tried, with its accuracy on the held-out part, and which of them were taken."""
    changes = {name: change for task in plan.tasks for name, change in task.choices.items()}
    out: list[dict[str, Any]] = []
    for name, cell in plan.trials.items():
        done = board.state(tasks[name]) == "done"
        accuracy = board.run(name).read_result()["metrics"]["val_accuracy"] if done else None
        facts = {"pair": cell.pair, "method": cell.method, "changes": changes.get(name, {}), "accuracy": accuracy}
        out.append(facts | ({} if done else {"why": board.failure(name) or "not run yet"}))
    for group in {(trial["pair"], trial["method"]) for trial in out}:
        same = [trial for trial in out if (trial["pair"], trial["method"]) == group]
        best = max(same, key=lambda trial: -1.0 if trial["accuracy"] is None else trial["accuracy"])
        for trial in same:
            trial["taken"] = trial is best and best["accuracy"] is not None
    return out


@dataclass(frozen=True)
class Gap:
    """A paired difference in points: mean and half the width of its 95 % interval (Student's t over seeds; None: one seed)."""

    mean: float
    half: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """What may be said of it: fewer than three seeds say nothing."""
        if self.half is None or self.seeds < 3:
            return "too few seeds to tell"
        return "a difference" if abs(self.mean) > self.half else "no difference shown"


@dataclass(frozen=True)
class Line:
    """One method on one pair."""

    pair: str
    method: str
    accuracy: dict[int, float]  # by seed, as a fraction
    hours: float  # training time, mean over seeds
    extra_parameters: int
    settings_tried: int
    gaps: dict[str, Gap | None]  # to scratch and KD

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


def gap(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gap | None:
    """The paired difference over the seeds that both have; None where they share none."""
    found = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not found:
        return None
    if len(found) == 1:
        return Gap(found[0], None, 1)
    error = statistics.stdev(found) / len(found) ** 0.5
    return Gap(statistics.fmean(found), error * float(t.ppf(0.975, len(found) - 1)), len(found))


def lines(summary: Mapping[str, Any]) -> list[Line]:
    """One line a pair and method, in order of first appearance."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in summary["runs"]:
        cells.setdefault((run["pair"], run["method"]), []).append(run)
    scores = {key: {run["seed"]: run["accuracy"] for run in runs} for key, runs in cells.items()}
    tuned = {(trial["pair"], trial["method"]) for trial in summary["tuning"]}
    return [
        Line(
            pair,
            method,
            dict(sorted(scores[pair, method].items())),
            statistics.fmean(run["seconds"] for run in runs) / 3600,
            runs[0]["extra_parameters"],
            summary["settings_tried"] if (pair, method) in tuned else 1,
            {
                base: gap(scores[pair, method], scores[pair, base])
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
            said = gap(found[pair, method], found[pair, rival])
            if said is None:
                yield f"{pair}: {method} and {rival} have no seed in common"
            else:
                width = f" ± {said.half:.2f}" if said.half is not None and said.seeds > 2 else ""
                yield f"{pair}: {method} minus {rival} {said.mean:+.2f}{width} points ({said.seeds} seeds: {said.verdict})"
