"""Runs -> one plain mapping that can be committed: recipes, versions, commit, seeds, hardware, accuracies. And its table."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

from uhkd.runs import RunFolder

# what differs between the cells of one table, or names places on this machine
_CELL = ("out", "seed", "method", "data", "teacher", "student", "settings", "weights", "resume", "workers")
_CELL += ("start", "student_start", "teacher_start")


def gather(
    title: str,
    teacher: RunFolder,
    runs: Sequence[RunFolder],
    *,
    part: str = "val",
    accuracies: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Everything that the numbers of one table rest on.

    Args:
        part: the images measured; "val" takes the last row of each run's metrics, otherwise give `accuracies` (teacher
            first, then the runs in order).

    Raises:
        ValueError: when runs of one student differ in more than method and seed, a cell comes twice, or a run was made with
            other images or another teacher.
    """
    told = [json.loads(run.result.read_text()) for run in (teacher, *runs)]
    if accuracies is None:
        accuracies = [result["metrics"]["val_accuracy"] for result in told]
    _refuse_mixtures(teacher, runs, told)
    recipes: dict[str, dict[str, Any]] = {}
    cells = []
    for run, result, accuracy in zip(runs, told[1:], accuracies[1:], strict=True):
        recipe = run.read_recipe()
        shared = {k: v for k, v in recipe.items() if k not in _CELL}
        if recipes.setdefault(recipe["student"], shared) != shared:
            raise ValueError(f"{run.path} was made by another recipe than the other runs of {recipe['student']}")
        cells.append(
            {k: recipe[k] for k in ("student", "method", "seed", "settings", "weights")}
            | {"accuracy": accuracy, "parameters": result["parameters"], "extra_parameters": result["extra_parameters"]}
            | {"metrics": result["metrics"], "commit": run.read_environment()["commit"]}
        )
    own = {k: v for k, v in teacher.read_recipe().items() if k not in _CELL}
    facts = {k: v for k, v in told[-1]["environment"].items() if k != "command"}
    return {
        "title": title,
        "part": part,
        "data": {k: told[-1][k] for k in ("data", "data_fingerprint", "train_images")},
        "teacher": {"accuracy": accuracies[0], "recipe": own, "parameters": told[0]["parameters"]}
        | {"train_images": told[0]["train_images"], "commit": teacher.read_environment()["commit"]},
        "recipes": recipes,
        "environment": facts,
        "runs": cells,
    }


def _refuse_mixtures(teacher: RunFolder, runs: Sequence[RunFolder], told: Sequence[dict[str, Any]]) -> None:
    """One table: one data set, one teacher, one setting a method, one run a seed."""
    seen: dict[tuple[str, str], dict[int, Any]] = {}
    for run, result in zip(runs, told[1:], strict=True):
        recipe = run.read_recipe()
        if _machine(result) != _machine(told[1]):
            raise ValueError(f"{run.path} ran on another machine or with other versions than {runs[0].path}")
        if result["data_fingerprint"] != told[1]["data_fingerprint"]:
            raise ValueError(f"{run.path} was trained on other images than {runs[0].path}")
        if recipe["method"] != "scratch" and Path(recipe["teacher"]).resolve() != teacher.path.resolve():
            raise ValueError(f"{run.path} learned from {recipe['teacher']}, not from {teacher.path}")
        cells = seen.setdefault((recipe["student"], recipe["method"]), {})
        if recipe["seed"] in cells:
            raise ValueError(f"{run.path} repeats seed {recipe['seed']} of {recipe['student']} by {recipe['method']}")
        cells[recipe["seed"]] = (recipe["settings"], recipe["weights"])
        if len({json.dumps(words, sort_keys=True) for words in cells.values()}) > 1:
            raise ValueError(f"{run.path} has other settings or weights than other seeds of {recipe['method']}")


def _machine(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result["environment"].items() if k not in ("command", "commit")}


def by_method(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """{student: {method: {seed: accuracy}}} in order of first appearance, seeds ascending."""
    table: dict[str, dict[str, dict[int, float]]] = {}
    for run in summary["runs"]:
        table.setdefault(run["student"], {}).setdefault(run["method"], {})[run["seed"]] = run["accuracy"]
    return {s: {m: dict(sorted(seeds.items())) for m, seeds in found.items()} for s, found in table.items()}


def mean_sd(values: Sequence[float]) -> str:
    """'97.21 ± 0.35' in percent; the spread is the sample standard deviation over seeds."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def table(summary: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows: student, its parameters, teacher, one column a method; cells are mean ± sd in percent."""
    cells = by_method(summary)
    methods = list(dict.fromkeys(method for found in cells.values() for method in found))
    size = {run["student"]: run["parameters"] for run in summary["runs"]}
    rows = [
        [student, f"{size[student] / 1e6:.2f} M", f"{100 * summary['teacher']['accuracy']:.2f}"]
        + [mean_sd(list(found[m].values())) if m in found else "not run" for m in methods]
        for student, found in sorted(cells.items(), key=lambda item: item[0])
    ]
    return [["student", "parameters", "teacher", *methods], *rows]


def verdicts(summary: Mapping[str, Any], method: str = "uhkd") -> Iterable[str]:
    """What the numbers say of a method against each other one, paired by seed, whichever way it falls.

    The interval is Student's t with 95 % confidence over student seeds; one teacher and one set of images are behind all.
    """
    for student, found in sorted(by_method(summary).items()):
        for rival in (m for m in found if m != method and method in found):
            seeds = sorted(found[method].keys() & found[rival].keys())
            gaps = [100 * (found[method][seed] - found[rival][seed]) for seed in seeds]
            if len(gaps) < 3:
                mean = f"{statistics.fmean(gaps):+.2f} points" if gaps else "no seed in common"
                yield f"{student}: {method} minus {rival} {mean} ({len(gaps)} seeds: too few to tell)"
                continue
            mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
            half = error * float(t.ppf(0.975, len(gaps) - 1))
            said = "no difference shown" if abs(mean) <= half else "a difference"
            yield f"{student}: {method} minus {rival} {mean:+.2f} ± {half:.2f} points (95 % over seeds: {said})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    marks = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in marks)
