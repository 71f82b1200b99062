"""The tables of the page as rows of cells: the text to show and the number to sort by."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from uhkd.reporting.aggregates import labels_of, same_images, teacher_predictions
from uhkd.reporting.grouping import NOT_COMPARED, MeanStd, MethodGroup, StudentGroup, Teacher
from uhkd.reporting.run_data import Run, number
from uhkd.reporting.summary import cut, evaluator_of

NOT_RECORDED = "not recorded"
NOT_RUN = "not run"


class Cell(NamedTuple):
    """The text of a cell and its number, None where it has none."""

    text: str
    sort: float | None = None


class Row(NamedTuple):
    """A row of the summary: a teacher, a group (with its key, colour and dash), or a baseline that was not run."""

    label: str
    cells: tuple[Cell, ...]
    kind: str
    key: str = ""
    hue: str = "ink"
    dash: int = 0
    drawn: bool = False


HEAD = (
    ("runs", "number of seeds; unfinished runs are listed at the end of the page"),
    ("top-1 %", "validation accuracy after the last epoch, mean ± sd over seeds"),
    ("top-5 %", "share of validation images with the true class among the five most probable classes"),
    ("test top-1 %", "accuracy on the test split, where a comparison measured it"),
    (
        "calibration error %",
        "expected calibration error, 15 bins: distance between confidence and accuracy; lower is better",
    ),
    (
        "with temperature %",
        "the same with the logits divided by the temperature of the run; on the held-out images that it was not fitted on",
    ),
    ("agrees with teacher %", "share of validation images for which it predicts the teacher's class"),
    ("parameters", "of the network alone"),
    ("FLOPs", "for one image: matrix products, convolutions and attention; a multiply-add counts as two"),
    (
        "latency ms",
        "for one image, median of 20 passes after the training, on the machine of the run (see Machine and software)",
    ),
    ("size MB", "of its weights"),
    ("minutes", "training time, without validation"),
)


def summary_rows(student_group: StudentGroup, drawn: set[str]) -> list[Row]:
    """Return rows for the teachers, the baselines that were not run, and the groups. drawn: keys of groups in the figures."""
    rows = [_teacher_row(t, len(student_group.teachers) > 1) for t in student_group.teachers]
    not_run = ([] if student_group.teachers else ["teacher"]) + [*student_group.missing]
    rows += [Row(name, (Cell(NOT_RUN), *_dashes(HEAD[1:])), "missing") for name in not_run]
    # the accuracy of the student before its first step, where a probe measured it
    start = student_group.groups[0].mean_std(lambda run: run.evaluator[1] if run.evaluator else None)
    if start is not None:
        rows.append(Row("untrained student", (Cell("-"), _mean_std(start), *_dashes(HEAD[2:])), "missing"))
    return [*rows, *(_group_row(group, student_group, drawn) for group in student_group.groups)]


def _dashes(columns: tuple[Any, ...]) -> list[Cell]:
    return [Cell("-")] * len(columns)


def _teacher_row(teacher: Teacher, several: bool) -> Row:
    cells = (
        Cell("1", 1.0),
        _cell(teacher.metrics.get("accuracy"), _percent),
        _cell(teacher.metrics.get("top5"), _percent),
        _cell(teacher.test, _percent, "-"),
        _cell(teacher.metrics.get("ece"), _percent),
        *_dashes(HEAD[:2]),
        *_sizes(teacher.parameters, teacher.flops, teacher.latency, teacher.bytes),
        Cell("-"),
    )
    return Row(f"teacher {teacher.name}" if several else f"teacher: {teacher.name}", cells, "teacher", dash=1)


def _group_row(group: MethodGroup, student_group: StudentGroup, drawn: set[str]) -> Row:
    labels = labels_of(student_group)
    teacher = None if labels is None else teacher_predictions(group.teacher, labels)

    def agreement(run: Run) -> float | None:
        student = run.predictions()
        if student is None or teacher is None or labels is None or not same_images(run, labels):
            return None
        return float((student == teacher).mean())

    finished = sum(run.finished for run in group.runs)
    runs = str(finished) if finished == len(group.runs) else f"{finished} of {len(group.runs)} finished"
    accuracy = _mean_std(group.metric("val_accuracy"))
    if (evaluator := evaluator_of(group)) and accuracy.sort is not None:
        accuracy = Cell(f"{accuracy.text} by {evaluator}", accuracy.sort)
    latency, seconds = group.mean_std(_latency), group.metric("seconds")
    cells = (
        Cell(runs, float(finished)),
        accuracy,
        _mean_std(group.metric("val_top5")),
        _mean_std(group.mean_std(lambda run: number(run.test, "accuracy")), "-"),
        _mean_std(group.metric("val_ece")),
        _mean_std(group.mean_std(lambda run: number(run.calibration, "after", "ece", "value")), "-"),
        _mean_std(group.mean_std(agreement), "-" if group.teacher is None else NOT_RECORDED),
        *_sizes(
            _first(group, "parameters"),
            _first(group, "sizes", "student", "flops"),
            None if latency is None else latency.mean,
            _first(group, "sizes", "student", "bytes"),
        ),
        _cell(None if seconds is None else seconds.mean, lambda s: f"{s / 60:.1f}"),
    )
    return Row(group.label, cells, "group", group.key, f"s{group.hue}", group.dash, group.key in drawn)


def _latency(run: Run) -> float | None:
    return run.latency("student")


def _first(group: MethodGroup, *keys: str) -> float | None:
    return next((n for run in group.runs if (n := number(run.result, *keys)) is not None), None)


def _cell(value: float | None, text: Callable[[float], str], otherwise: str = NOT_RECORDED) -> Cell:
    return Cell(otherwise) if value is None else Cell(text(value), value)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _mean_std(mean_std: MeanStd | None, otherwise: str = NOT_RECORDED) -> Cell:
    """Return fractions as a cell with mean ± sd in percent."""
    return Cell(otherwise) if mean_std is None else Cell(mean_std.percent(), mean_std.mean)


def _sizes(
    parameters: float | None, flops: float | None, latency: float | None, num_bytes: float | None
) -> tuple[Cell, ...]:
    return (
        _cell(parameters, short),
        _cell(flops, short),
        _cell(latency, lambda ms: f"{ms:.3g}"),
        _cell(num_bytes, lambda size: f"{size / 1e6:.3g}"),
    )


def short(count: float) -> str:
    """Return a number with a unit: 1234567 as '1.23 M'."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def differing(student_group: StudentGroup) -> list[tuple[str, str]]:
    """Return for every group the options of its recipe that differ from the most common value in the student group."""
    ignored = NOT_COMPARED | {"method", "teacher_views"}
    recipes = {
        g.label: {str(k): str(v) for k, v in g.first.options.items() if k not in ignored} for g in student_group.groups
    }
    common = {
        key: Counter(recipe.get(key, "none") for recipe in recipes.values()).most_common(1)[0][0]
        for key in dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    }
    rows = []
    for label, recipe in recipes.items():
        options = {key: recipe.get(key, "none") for key in common}
        rows.append((label, cut(", ".join(f"{k}: {v}" for k, v in options.items() if v != common[k]), 400)))
    return rows


def run_rows(student_group: StudentGroup) -> list[tuple[str, ...]]:
    """Return for every run: name, group, seed, state, accuracy, epochs, images per second and data wait."""
    rows = []
    for group in student_group.groups:
        for run in group.runs:
            seed = number(run.recipe, "seed")
            rows.append(
                (
                    cut(run.name),
                    group.label,
                    "-" if seed is None else f"{seed:.0f}",
                    "finished" if run.finished else cut(f"failed: {run.failure}" if run.failure else "not finished"),
                    _cell(run.metric("val_accuracy"), lambda accuracy: f"{100 * accuracy:.2f}").text,
                    f"{number(run.rows[-1], 'epoch') or 0:.0f}" if run.rows else "0",
                    _cell(run.metric("images_per_second"), lambda speed: f"{speed:.0f}").text,
                    _cell(run.metric("data_wait"), lambda share: f"{100 * share:.0f}").text,
                )
            )
    return rows


def environments(runs: tuple[Run, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each environment once: the names of its runs, and its properties."""
    kinds: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}
    for run in runs:
        properties = []
        for key, value in run.environment.items():
            if key == "versions" and isinstance(value, Mapping):
                properties += [(f"version of {k}", cut(str(v))) for k, v in value.items()]
            elif key != "command":
                properties.append((str(key).replace("_", " "), "none" if value is None else cut(str(value))))
        kinds.setdefault(repr(properties), ([], properties))[0].append(run.name)
    return [(cut(", ".join(names), 300), facts or [("environment", NOT_RECORDED)]) for names, facts in kinds.values()]


def missing(run: Run) -> list[str]:
    """Return what a run of the current version records and this one did not."""
    arrays = {"val_prediction": "predictions", "val_shown": "thumbnails"}
    names = [text for name, text in arrays.items() if not isinstance(run.arrays.get(name), np.ndarray)]
    names += [] if _latency(run) is not None else ["latency"]
    names += [] if run.rows else ["learning curves"]
    names += [] if number(run.result, "sizes", "student", "flops") is not None else ["FLOPs and size"]
    distilled = run.method not in ("scratch", "finetune")
    return names + (["predictions of the teacher"] if distilled and run.predictions("teacher") is None else [])
