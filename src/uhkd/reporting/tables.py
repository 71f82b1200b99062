"""The tables of the page as rows of cells: words to show, and numbers to sort by."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from uhkd.reporting.aggregates import labels_of, same_images, teacher_predictions
from uhkd.reporting.grouping import PLACES, MeanStd, MethodGroup, StudentGroup, Teacher
from uhkd.reporting.run_data import Run, number
from uhkd.reporting.summary import cut, evaluator_of

NOT_RECORDED = "not recorded"
NOT_RUN = "not run"


class Cell(NamedTuple):
    """What a cell says; sort: its number, None where it has none."""

    text: str
    sort: float | None = None


class Row(NamedTuple):
    """A row of the summary: a teacher, a group (with its key, colour and dash), or one that was not run."""

    label: str
    cells: tuple[Cell, ...]
    kind: str
    key: str = ""
    hue: str = "ink"
    dash: int = 0
    drawn: bool = False


HEAD = (
    ("runs", "seeds; unfinished ones are named below"),
    ("top-1 %", "validation accuracy after the last epoch, mean ± sd over seeds"),
    ("top-5 %", "share of validation images whose class is among the five likeliest"),
    ("test top-1 %", "accuracy on the test part, where a comparison measured it"),
    ("calibration error %", "expected calibration error, 15 bins: how far confidence is from accuracy; less is better"),
    ("agrees with teacher %", "share of validation images for which it names the teacher's class"),
    ("parameters", "of the network alone"),
    ("FLOPs", "of one image: matrix products, convolutions and attention, two for each multiply-add"),
    ("latency ms", "one image, median, on the machine and at the time of the run"),
    ("size MB", "of its weights"),
    ("minutes", "training time, without validation"),
)


def summary_rows(family: StudentGroup, drawn: set[str]) -> list[Row]:
    """Teachers, what was not run, then the groups in their order. drawn: keys of groups in the figures."""
    rows = [_teacher_row(t, len(family.teachers) > 1) for t in family.teachers]
    if not family.teachers:
        rows.append(Row("teacher", _empty(NOT_RUN), "missing"))
    rows += [Row(name, _empty(NOT_RUN), "missing") for name in family.missing]
    rows += [row for group in family.groups[:1] if (row := _untrained_row(group)) is not None]
    return [*rows, *(_group_row(group, family, drawn) for group in family.groups)]


def _empty(text: str) -> tuple[Cell, ...]:
    return (Cell(text), *(Cell("-") for _ in HEAD[1:]))


def _teacher_row(teacher: Teacher, several: bool) -> Row:
    known = teacher.metrics
    cells = (
        Cell("1", 1.0),
        _percent(known.get("accuracy")),
        _percent(known.get("top5")),
        _percent(teacher.test, "-"),
        _percent(known.get("ece")),
        Cell("-"),
        *_sizes(teacher.parameters, teacher.flops, teacher.latency, teacher.bytes),
        Cell("-"),
    )
    return Row(f"teacher {teacher.name}" if several else f"teacher: {teacher.name}", cells, "teacher", dash=1)


def _untrained_row(group: MethodGroup) -> Row | None:
    """The student before its first step, where a probe measured it."""
    start = group.spread(lambda run: run.evaluator[1] if run.evaluator else None)
    if start is None:
        return None
    return Row("untrained student", (Cell("-"), _spread(start, 100), *(Cell("-") for _ in HEAD[2:])), "missing")


def _group_row(group: MethodGroup, family: StudentGroup, drawn: set[str]) -> Row:
    labels = labels_of(family)
    agreement = None if labels is None or group.teacher is None else teacher_predictions(group.teacher, labels)

    def agrees(run: Run) -> float | None:
        own = run.predictions()
        fits = own is not None and agreement is not None and labels is not None and same_images(run, labels)
        return float((own == agreement).mean()) if fits else None

    done = sum(run.finished for run in group.runs)
    runs = Cell(str(done) if done == len(group.runs) else f"{done} of {len(group.runs)} finished", float(done))
    tested = group.spread(lambda run: number(run.test, "accuracy"))
    cells = (
        runs,
        _spread(group.metric("val_accuracy"), 100),
        _spread(group.metric("val_top5"), 100),
        _spread(tested, 100, "-"),
        _spread(group.metric("val_ece"), 100),
        _spread(group.spread(agrees), 100, "-" if group.teacher is None else NOT_RECORDED),
        *_sizes(
            _first(group, "parameters"),
            _first(group, "sizes", "student", "flops"),
            s.mean if (s := group.spread(_latency)) else None,
            _first(group, "sizes", "student", "bytes"),
        ),
        _minutes(group.metric("seconds")),
    )
    if (evaluator := evaluator_of(group)) and cells[1].sort is not None:
        cells = (cells[0], Cell(f"{cells[1].text} by {evaluator}", cells[1].sort), *cells[2:])
    return Row(group.label, cells, "group", group.key, f"s{group.hue}", group.dash, group.key in drawn)


def _latency(run: Run) -> float | None:
    found = run.array("latency_ms", 1)
    return None if found is None else number(float(found[0]))


def _first(group: MethodGroup, *keys: str) -> float | None:
    return next((n for run in group.runs if (n := number(run.result, *keys)) is not None), None)


def _percent(value: float | None, otherwise: str = NOT_RECORDED) -> Cell:
    return Cell(otherwise) if value is None else Cell(f"{100 * value:.1f}", value)


def _spread(spread: MeanStd | None, scale: float, otherwise: str = NOT_RECORDED) -> Cell:
    if spread is None:
        return Cell(otherwise)
    sd = "" if spread.sd is None else f" ± {scale * spread.sd:.1f}"
    return Cell(f"{scale * spread.mean:.1f}{sd}", spread.mean)


def _minutes(spread: MeanStd | None) -> Cell:
    return Cell(NOT_RECORDED) if spread is None else Cell(f"{spread.mean / 60:.1f}", spread.mean)


def _sizes(
    parameters: float | None, flops: float | None, latency: float | None, size: float | None
) -> tuple[Cell, ...]:
    return (
        Cell(NOT_RECORDED) if parameters is None else Cell(short(parameters), parameters),
        Cell(NOT_RECORDED) if flops is None else Cell(short(flops), flops),
        Cell(NOT_RECORDED) if latency is None else Cell(f"{latency:.3g}", latency),
        Cell(NOT_RECORDED) if size is None else Cell(f"{size / 1e6:.3g}", size),
    )


def short(count: float) -> str:
    """1234567 as '1.23 M'."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def differing(family: StudentGroup) -> list[tuple[str, str]]:
    """For every group the words of its recipe that are not the family's most common ones."""
    flat = {g.label: _flat_recipe(g.first.options) for g in family.groups}
    common = {
        key: Counter(text.get(key, "none") for text in flat.values()).most_common(1)[0][0]
        for key in dict.fromkeys(key for text in flat.values() for key in text)
    }
    return [
        (
            label,
            cut(", ".join(f"{k}: {text.get(k, 'none')}" for k, c in common.items() if text.get(k, "none") != c), 400),
        )
        for label, text in flat.items()
    ]


def _flat_recipe(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {str(k): str(v) for k, v in recipe.items() if k not in PLACES | {"method", "teacher_views"}}


def run_rows(family: StudentGroup) -> list[tuple[str, ...]]:
    """Every run: name, group, seed, state, accuracy, epochs, speed, commit."""
    rows = []
    for group in family.groups:
        for run in group.runs:
            accuracy, speed = run.metric("val_accuracy"), run.metric("images_per_second")
            wait, seed = run.metric("data_wait"), number(run.recipe, "seed")
            epochs = f"{number(run.rows[-1], 'epoch') or 0:.0f}" if run.rows else "0"
            rows.append(
                (
                    cut(run.name),
                    group.label,
                    "-" if seed is None else f"{seed:.0f}",
                    "finished" if run.finished else cut(f"failed: {run.failure}" if run.failure else "not finished"),
                    NOT_RECORDED if accuracy is None else f"{100 * accuracy:.2f}",
                    epochs,
                    NOT_RECORDED if speed is None else f"{speed:.0f}",
                    NOT_RECORDED if wait is None else f"{100 * wait:.0f}",
                )
            )
    return rows


def machines(runs: tuple[Run, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each kind of machine and software once: which runs, and its facts."""
    kinds: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}
    for run in runs:
        facts = []
        for key, value in run.environment.items():
            if key == "versions" and isinstance(value, Mapping):
                facts += [(f"version of {k}", cut(str(v))) for k, v in value.items()]
            elif key != "command":
                facts.append((str(key).replace("_", " "), "none" if value is None else cut(str(value))))
        kinds.setdefault(repr(facts), ([], facts))[0].append(run.name)
    return [(cut(", ".join(names), 300), facts or [("environment", NOT_RECORDED)]) for names, facts in kinds.values()]


def lacking(run: Run) -> list[str]:
    """What a run of today would have recorded and this one did not."""
    wanted = {"val_prediction": "predictions", "val_shown": "thumbnails", "latency_ms": "latency"}
    found = [text for name, text in wanted.items() if not isinstance(run.arrays.get(name), np.ndarray)]
    found += [] if run.rows else ["learning curves"]
    found += [] if number(run.result, "sizes", "student", "flops") is not None else ["FLOPs and size"]
    distilled = run.method not in ("scratch", "finetune")
    return found + (["predictions of the teacher"] if distilled and run.predictions("teacher") is None else [])
