"""Figures that compare the groups of one student: accuracy, learning curves, loss terms, gradients, balance, speed."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from uhkd.reporting.error_figures import agreements, by_class, confusions
from uhkd.reporting.figure_data import Bar, Bars, Curves, Drawing, Legend, Line
from uhkd.reporting.grouping import MethodGroup, StudentGroup
from uhkd.reporting.health import factors, gradient_shares, leads
from uhkd.reporting.run_data import ABSURD

_NOT_TERMS = {"step", "epoch", "lr", "seconds", "images_per_second", "data_wait", "skipped"}
_MAX_ROWS = 60
_MAX_POINTS = 300  # of a line
_MAX_PANELS = 24


def of_student_group(student_group: StudentGroup) -> list[Drawing]:
    """Return all figures for which the runs have data."""
    makers: tuple[Callable[[StudentGroup], Drawing | None], ...] = (
        *(_accuracy, _learning, _terms, _gradients, _balance),
        *(by_class, confusions, agreements, _speed),
    )
    return [drawing for make in makers if (drawing := make(student_group)) is not None]


def legend_of(groups: Sequence[MethodGroup]) -> Legend:
    """Return label, colour, dash and key of each group."""
    return tuple((group.label, f"s{group.hue}", group.dash, group.key) for group in groups)


def _accuracy(student_group: StudentGroup) -> Drawing | None:
    accuracies = [(g, s) for g in student_group.groups if (s := g.metric("val_accuracy")) is not None]
    if not accuracies:
        return None
    accuracies.sort(key=lambda pair: -pair[1].mean)
    teachers = [100 * t.metrics["accuracy"] for t in student_group.teachers if "accuracy" in t.metrics]
    rows = [Bar("teacher", ((accuracy, "ink", f"{accuracy:.1f}"),)) for accuracy in reversed(teachers)]
    for group, accuracy in accuracies[:_MAX_ROWS]:
        values = ((100 * accuracy.mean, f"s{group.hue}", accuracy.percent()),)
        dots = tuple(100 * a for run in group.runs if (a := run.metric("val_accuracy")) is not None)
        rows.append(Bar(group.label, values, dots if accuracy.count > 1 else (), group=group.key))
    summary = ", ".join(f"{g.label} {s.percent()}" for g, s in accuracies)
    return Drawing(
        f"{student_group.key}-accuracy",
        "Accuracy",
        "Each row is a method; dots are single runs (seeds), the bar is their mean. Look whether the dots of two rows "
        "overlap: if they do, these runs do not show which method is better.",
        f"Validation accuracy in percent: {summary}.",
        (Bars("", "validation accuracy (%)", tuple(rows), as_dots=True),),
    )


def _rows(group: MethodGroup) -> list[Mapping[str, float]]:
    return [row for run in group.runs for row in run.rows]


def _lines(groups: Sequence[MethodGroup], column: str, scale: float = 1.0) -> tuple[Line, ...]:
    lines = (_line(group, _rows(group), column, scale) for group in groups)
    return tuple(line for line in lines if line is not None)


def _line(group: MethodGroup, rows: Sequence[Mapping[str, float]], column: str, scale: float = 1.0) -> Line | None:
    """Return a column of a group's rows over epochs: the mean over the runs that have it, with a band of one sd."""
    by_epoch: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        value, epoch = row.get(column, math.nan), row.get("epoch", math.nan)
        if abs(value) < ABSURD and abs(epoch) < ABSURD:
            by_epoch[epoch].append(scale * value)
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    epochs = [epochs[round(i)] for i in np.linspace(0, len(epochs) - 1, min(len(epochs), _MAX_POINTS))]
    means = [float(np.mean(by_epoch[e])) for e in epochs]
    sds = [float(np.std(by_epoch[e], ddof=1)) if len(by_epoch[e]) > 1 else 0.0 for e in epochs]
    edges = ([m - s for m, s in zip(means, sds, strict=True)], [m + s for m, s in zip(means, sds, strict=True)])
    return Line(group.label, epochs, means, f"s{group.hue}", group.dash, edges if any(sds) else None, group=group.key)


def _last_values(panels: Sequence[Curves], digits: int) -> str:
    return "; ".join(
        f"{p.title}: " + ", ".join(f"{line.label} {line.y[-1]:.{digits}f}" for line in p.lines) for p in panels
    )


def _learning(student_group: StudentGroup) -> Drawing | None:
    columns = (
        ("val_accuracy", "validation accuracy (%)", 100.0),
        ("val_nll", "validation loss (nats)", 1.0),
        ("val_ece", "calibration error (%)", 100.0),
    )
    curves = (
        Curves(title, "epoch", "", _lines(student_group.groups, column, scale)) for column, title, scale in columns
    )
    panels = [panel for panel in curves if panel.lines]
    if not panels:
        return None
    last = ", ".join(f"{line.label} {line.y[0]:.1f} to {line.y[-1]:.1f}" for line in panels[0].lines)
    return Drawing(
        f"{student_group.key}-learning",
        "Learning curves",
        "Metrics on held-out images after each epoch (band: one standard deviation over seeds). Look for curves that still "
        "improve at the end (train more epochs) and for a validation loss that rises again (overfitting).",
        f"{panels[0].title}, first to last evaluation: {last}.",
        tuple(panels),
        legend=legend_of(student_group.groups),
    )


def _columns(student_group: StudentGroup) -> list[str]:
    return list(dict.fromkeys(key for group in student_group.groups for row in _rows(group) for key in row))


def _terms(student_group: StudentGroup) -> Drawing | None:
    excluded = _NOT_TERMS | _balance_columns(student_group).keys()
    by_term: dict[str, list[str]] = defaultdict(list)
    for column in _columns(student_group):
        if column not in excluded and not column.startswith(("val_", "grad_")):
            by_term[column.rpartition(".")[2]].append(column)
    panels = []
    for term, columns in by_term.items():
        if lines := tuple(line for column in columns for line in _lines(student_group.groups, column)):
            panels.append(Curves(columns[0] if len(columns) == 1 else term, "epoch", "", lines))
    if not panels:
        return None
    summary = "; ".join(
        f"{p.title}: " + ", ".join(f"{line.label} {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in p.lines[:8])
        for p in panels
    )
    return Drawing(
        f"{student_group.key}-terms",
        "Loss by term",
        "Each panel is one term of the training loss before its weight, averaged over an epoch; 'loss' is the weighted sum. "
        "A flat term has no effect: its weight is too small, or the student cannot fit it.",
        f"First to last epoch. {summary}.",
        tuple(panels[:_MAX_PANELS]),
        legend=legend_of(student_group.groups),
    )


def _gradients(student_group: StudentGroup) -> Drawing | None:
    names = [c.removeprefix("grad_") for c in _columns(student_group) if c.startswith("grad_")]
    panels = []
    for group in student_group.groups:
        shares = [gradient_shares(row) | {"epoch": row["epoch"]} for row in _rows(group) if "epoch" in row]
        curves = [(i, name, _line(group, shares, name, 100.0)) for i, name in enumerate(names)]
        lines = [Line(name, c.x, c.y, f"s{i % 8}", i // 8, c.band) for i, name, c in curves if c is not None]
        if lines:
            panels.append(Curves(group.label, "epoch", "share of the gradient (%)", tuple(lines)))
    if not panels:
        return None
    return Drawing(
        f"{student_group.key}-gradients",
        "Gradient by term",
        "The share of each weighted term in the student's gradient: its norm divided by the sum of all norms. If one term is "
        "far above the others, it dominates the training: lower its weight if the cross-entropy should have an effect.",
        f"Last share in percent. {_last_values(panels, 0)}.",
        tuple(panels[:_MAX_PANELS]),
        legend=tuple((name, f"s{i % 8}", i // 8, None) for i, name in enumerate(names)),
    )


def _balance_columns(student_group: StudentGroup) -> dict[str, str]:
    """Return the columns of factors, then those of leads, each with its label."""
    row = dict.fromkeys(_columns(student_group), 0.0)
    names = {"features": "feature terms", "logits": "logit terms"}
    columns = {}
    for name in factors(row):
        teacher, _, group = name.rpartition(":")
        columns[f"factor_{name}"] = names.get(group, group) + (f" of teacher {teacher}" if teacher else "")
    for teacher in leads(row):
        column, label = (f"lead_{teacher}", f"teacher {teacher}") if teacher else ("lead", "the teacher")
        columns[column] = f"lead of {label}"
    return columns


def _balance(student_group: StudentGroup) -> Drawing | None:
    labels = _balance_columns(student_group)
    # factors are often equal: different dashes keep both lines visible
    marks = {c: (f"s{i % 8}", 2 if c.startswith("lead") else int(c.endswith("logits"))) for i, c in enumerate(labels)}
    panels = []
    for group in student_group.groups:
        curves = {column: c for column in labels if (c := _line(group, _rows(group), column)) is not None}
        if curves:
            lines = tuple(Line(labels[column], c.x, c.y, *marks[column], c.band) for column, c in curves.items())
            y_label = "factor and lead" if any(column.startswith("lead") for column in curves) else "factor"
            panels.append(Curves(group.label, "epoch", y_label, lines))
    if not panels:
        return None
    caption = (
        "The factor on the weights of the teacher's feature terms and logit terms at each evaluation: 1 is full weight, at 0 "
        "the student is trained without them."
    )
    if any(column.startswith("lead") for column in labels):
        caption += (
            " Dotted: the teacher's lead, the share by which the student's accuracy on the training images is below the "
            "teacher's. A lead near 0 early in the training means that the teacher is hardly more accurate than the student."
        )
    return Drawing(
        f"{student_group.key}-balance",
        "Balance: weight of the teacher's terms",
        caption,
        f"Last value, 0 to 1. {_last_values(panels, 2)}.",
        tuple(panels[:_MAX_PANELS]),
        legend=tuple((label, *marks[column], None) for column, label in labels.items()),
    )


def _speed(student_group: StudentGroup) -> Drawing | None:
    def bars(metric: str, scale: float) -> tuple[Bar, ...]:
        means = [(g, scale * s.mean) for g in student_group.groups if (s := g.metric(metric)) is not None]
        return tuple(Bar(g.label, ((m, f"s{g.hue}", f"{m:.0f}"),), group=g.key) for g, m in means[:_MAX_ROWS])

    speeds, waits = bars("images_per_second", 1), bars("data_wait", 100)
    if not speeds:
        return None
    panels = [Bars("throughput", "training images per second", speeds)]
    panels += [Bars("data wait", "time waiting for images (%)", waits)] if waits else []
    summary = ", ".join(f"{bar.label} {bar.values[0][2]}" for bar in speeds)
    return Drawing(
        f"{student_group.key}-speed",
        "Speed of the training",
        "Training images per second, and the share of time in which the training waited for images. Above about ten percent, "
        "use more loader processes (--workers) or smaller images; below, the networks limit the speed.",
        f"Images per second: {summary}.",
        tuple(panels),
    )
