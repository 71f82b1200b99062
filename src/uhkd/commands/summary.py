"""Runs -> one plain mapping that can be committed: recipes, versions, commit, seeds, hardware, accuracies. And its table."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uhkd.runs import RunFolder

# what differs between the cells of one table, or names places on this machine
_CELL = ("out", "seed", "method", "data", "teacher", "student", "settings", "weights", "resume", "workers")


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
        ValueError: when runs of one student differ in more than method, seed, settings and weights.
    """
    told = [json.loads(run.result.read_text()) for run in (teacher, *runs)]
    if accuracies is None:
        accuracies = [result["metrics"]["val_accuracy"] for result in told]
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
            | {"metrics": result["metrics"], "commit": result["environment"]["commit"]}
        )
    own = {k: v for k, v in teacher.read_recipe().items() if k not in _CELL}
    facts = {k: v for k, v in told[-1]["environment"].items() if k != "command"}
    return {
        "title": title,
        "part": part,
        "data": {k: told[-1][k] for k in ("data", "data_fingerprint", "train_images")},
        "teacher": {"accuracy": accuracies[0], "recipe": own, "parameters": told[0]["parameters"]}
        | {"train_images": told[0]["train_images"], "commit": told[0]["environment"]["commit"]},
        "recipes": recipes,
        "environment": facts,
        "runs": cells,
    }


def by_method(summary: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """{student: {method: [accuracy by seed]}} in order of first appearance, seeds ascending."""
    table: dict[str, dict[str, list[float]]] = {}
    for run in sorted(summary["runs"], key=lambda run: run["seed"]):
        table.setdefault(run["student"], {}).setdefault(run["method"], []).append(run["accuracy"])
    return table


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
        + [mean_sd(found[m]) if m in found else "not run" for m in methods]
        for student, found in sorted(cells.items(), key=lambda item: item[0])
    ]
    return [["student", "parameters", "teacher", *methods], *rows]


def verdicts(summary: Mapping[str, Any], method: str = "uhkd") -> Iterable[str]:
    """What the numbers say of a method against each other one, paired by seed, whichever way it falls."""
    for student, found in sorted(by_method(summary).items()):
        for rival in (m for m in found if m != method and method in found):
            gaps = [100 * (a - b) for a, b in zip(found[method], found[rival], strict=True)]
            mean, said = (
                statistics.fmean(gaps),
                f"{student}: {method} minus {rival} {statistics.fmean(gaps):+.2f} points",
            )
            if len(gaps) < 3:
                yield f"{said} ({len(gaps)} seeds: too few to tell)"
                continue
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            beyond = "beyond" if abs(mean) > 2 * error else "within"
            yield f"{said}, standard error {error:.2f} ({beyond} two standard errors)"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    marks = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in marks)
