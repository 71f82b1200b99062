"""The figures that compare groups of one family: accuracy, learning curves, loss terms, gradients, balance, speed."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from uhkd.reporting.error_figures import agreements, by_class, confusions
from uhkd.reporting.figure_data import Bar, Bars, Curves, Drawing, Legend, Line
from uhkd.reporting.grouping import MeanStd, MethodGroup, StudentGroup
from uhkd.reporting.health import factors, gradient_shares, leads
from uhkd.reporting.run_data import ABSURD

_NOT_TERMS = {"step", "epoch", "lr", "seconds", "images_per_second", "data_wait", "skipped"}
_MOST_ROWS = 60
_MOST_POINTS = 300  # of a line


def of_family(family: StudentGroup) -> list[Drawing]:
    """Every figure that the runs of a family have the numbers for."""
    makers: tuple[Callable[[StudentGroup], Drawing | None], ...] = (
        _accuracy,
        _learning,
        _terms,
        _gradients,
        _balance,
        by_class,
        confusions,
        agreements,
        _speed,
    )
    return [drawn for make in makers if (drawn := make(family)) is not None]


def percent(spread: MeanStd | None) -> str:
    """'97.2 ± 0.4' of fractions, in percent; 'not recorded' without any."""
    if spread is None:
        return "not recorded"
    return f"{100 * spread.mean:.1f}" + ("" if spread.sd is None else f" ± {100 * spread.sd:.1f}")


def legend_of(groups: Sequence[MethodGroup]) -> Legend:
    """Label, colour, dash and key of each group."""
    return tuple((group.label, f"s{group.hue}", group.dash, group.key) for group in groups)


def _accuracy(family: StudentGroup) -> Drawing | None:
    known = [(g, s) for g in family.groups if (s := g.metric("val_accuracy")) is not None]
    if not known:
        return None
    known.sort(key=lambda pair: -pair[1].mean)
    rows = [
        Bar(
            g.label,
            ((100 * s.mean, f"s{g.hue}", percent(s)),),
            tuple(100 * a for run in g.runs if (a := run.metric("val_accuracy")) is not None) if s.count > 1 else (),
            group=g.key,
        )
        for g, s in known[:_MOST_ROWS]
    ]
    for teacher in family.teachers:
        if "accuracy" in teacher.metrics:
            accuracy = 100 * teacher.metrics["accuracy"]
            rows.insert(0, Bar("teacher", ((accuracy, "ink", f"{accuracy:.1f}"),)))
    summary = ", ".join(f"{g.label} {percent(s)}" for g, s in known)
    return Drawing(
        f"{family.key}-accuracy",
        "Accuracy",
        "Each row is a method: small dots are single runs (seeds), the bar across is their mean. Look whether the dots of "
        "two rows overlap: if they do, these runs do not tell which is better.",
        f"Validation accuracy in percent: {summary}.",
        (Bars("", "validation accuracy (%)", tuple(rows), as_dots=True),),
    )


def _lines(groups: Sequence[MethodGroup], column: str, scale: float = 1.0) -> tuple[Line, ...]:
    lines = (_line(group, [row for run in group.runs for row in run.rows], column, scale) for group in groups)
    return tuple(line for line in lines if line is not None)


def _line(group: MethodGroup, rows: Sequence[Mapping[str, float]], column: str, scale: float) -> Line | None:
    """A column of a group's rows over epochs: the mean over runs that have it, a band of one sd."""
    by_epoch: dict[float, list[float]] = {}
    for row in rows:
        value, epoch = row.get(column, math.nan), row.get("epoch", math.nan)
        if abs(value) < ABSURD and abs(epoch) < ABSURD:
            by_epoch.setdefault(epoch, []).append(scale * value)
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    epochs = [epochs[round(i)] for i in np.linspace(0, len(epochs) - 1, min(len(epochs), _MOST_POINTS))]
    means = [float(np.mean(by_epoch[e])) for e in epochs]
    spread = [float(np.std(by_epoch[e], ddof=1)) if len(by_epoch[e]) > 1 else 0.0 for e in epochs]
    edges = ([m - s for m, s in zip(means, spread, strict=True)], [m + s for m, s in zip(means, spread, strict=True)])
    band = edges if any(spread) else None
    return Line(group.label, epochs, means, f"s{group.hue}", group.dash, band, group=group.key)


def _learning(family: StudentGroup) -> Drawing | None:
    panels = []
    for column, title, scale in (
        ("val_accuracy", "validation accuracy (%)", 100.0),
        ("val_nll", "validation loss (nats)", 1.0),
        ("val_ece", "calibration error (%)", 100.0),
    ):
        if lines := _lines(family.groups, column, scale):
            panels.append(Curves(title, "epoch", "", lines))
    if not panels:
        return None
    last = ", ".join(f"{line.label} {line.y[0]:.1f} to {line.y[-1]:.1f}" for line in panels[0].lines)
    return Drawing(
        f"{family.key}-learning",
        "Learning curves",
        "How good the student was on held-out images after each epoch (band: one standard deviation over seeds). Look "
        "for curves that still rise at the end, which want more epochs, and for a validation loss that turns up again, "
        "which is overfitting.",
        f"{panels[0].title}, first to last evaluation: {last}.",
        tuple(panels),
        legend=legend_of(family.groups),
    )


def _columns(family: StudentGroup) -> list[str]:
    rows = [row for group in family.groups for run in group.runs for row in run.rows]
    return list(dict.fromkeys(key for row in rows for key in row))


def _terms(family: StudentGroup) -> Drawing | None:
    balance = _balance_columns(family)
    names = [c for c in _columns(family) if c not in _NOT_TERMS | {*balance} and not c.startswith(("val_", "grad_"))]
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.rpartition(".")[2], []).append(name)
    panels = []
    for term, columns in alike.items():
        if lines := tuple(line for column in columns for line in _lines(family.groups, column)):
            panels.append(Curves(columns[0] if len(columns) == 1 else term, "epoch", "", lines))
    if not panels:
        return None
    summary = "; ".join(
        f"{p.title}: " + ", ".join(f"{line.label} {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in p.lines[:8])
        for p in panels
    )
    return Drawing(
        f"{family.key}-terms",
        "Loss by term",
        "Each panel is one term of the training loss before its weight, averaged over an epoch; 'loss' is the weighted sum. "
        "A term that stays flat was not learned: its weight is too small, or the student cannot follow.",
        f"First to last epoch. {summary}.",
        tuple(panels[:24]),
        legend=legend_of(family.groups),
    )


def _gradients(family: StudentGroup) -> Drawing | None:
    names = [c.removeprefix("grad_") for c in _columns(family) if c.startswith("grad_")]
    panels = []
    for group in family.groups:
        lines = []
        rows = [
            gradient_shares(row) | {"epoch": row["epoch"]} for run in group.runs for row in run.rows if "epoch" in row
        ]
        for place, name in enumerate(names):
            own = _line(group, rows, name, 100.0)
            if own is not None:
                lines.append(Line(name, own.x, own.y, f"s{place % 8}", place // 8, own.band))
        if lines:
            panels.append(Curves(group.label, "epoch", "share of the gradient (%)", tuple(lines)))
    if not panels:
        return None
    legend = tuple((name, f"s{i % 8}", i // 8, None) for i, name in enumerate(names))
    summary = "; ".join(
        f"{p.title}: " + ", ".join(f"{line.label} {line.y[-1]:.0f}" for line in p.lines) for p in panels
    )
    return Drawing(
        f"{family.key}-gradients",
        "Who pulls: gradient by term",
        "How much of the student's gradient comes from each weighted term: its norm by the sum of all norms. "
        "One term far above all others trains the student "
        "alone; lower its weight if the cross-entropy should be heard.",
        f"Last share in percent. {summary}.",
        tuple(panels[:24]),
        legend=legend,
    )


def _balance_columns(family: StudentGroup) -> dict[str, str]:
    """Columns of factors, then those of leads, each with its words."""
    seen = dict.fromkeys(_columns(family), 0.0)
    names = {"features": "feature terms", "logits": "logit terms"}
    found = {}
    for name in factors(seen):
        teacher, _, group = name.rpartition(":")
        found[f"factor_{name}"] = names.get(group, group) + (f" of teacher {teacher}" if teacher else "")
    for teacher in leads(seen):
        found[f"lead_{teacher}" if teacher else "lead"] = (
            f"lead of {f'teacher {teacher}' if teacher else 'the teacher'}"
        )
    return found


def _balance(family: StudentGroup) -> Drawing | None:
    named = _balance_columns(family)
    # factors are often the same: one line must be seen through the other
    marks = {c: (f"s{i % 8}", 2 if c.startswith("lead") else int(c.endswith("logits"))) for i, c in enumerate(named)}
    panels, led = [], any(c.startswith("lead") for c in named)
    for group in family.groups:
        rows = [row for run in group.runs for row in run.rows]
        found = {c: own for c in named if (own := _line(group, rows, c, 1.0)) is not None}
        lines = [Line(named[c], own.x, own.y, *marks[c], own.band) for c, own in found.items()]
        if lines:
            what = "factor and lead" if any(c.startswith("lead") for c in found) else "factor"
            panels.append(Curves(group.label, "epoch", what, tuple(lines)))
    if not panels:
        return None
    summary = "; ".join(
        f"{p.title}: " + ", ".join(f"{line.label} {line.y[-1]:.2f}" for line in p.lines) for p in panels
    )
    return Drawing(
        f"{family.key}-balance",
        "Balance: weight of the teacher's terms",
        "The factor by which the weights of the teacher's feature terms and logit terms were multiplied at each evaluation: at "
        "1 they count in full, at 0 the student learns without them."
        + (
            " Dotted: the teacher's lead, the share by which the student's accuracy on the training images is below the "
            "teacher's. A lead near 0 early in a training means that this teacher is hardly more accurate than the student."
            if led
            else ""
        ),
        f"Last value, 0 to 1. {summary}.",
        tuple(panels[:24]),
        legend=tuple((names, *marks[column], None) for column, names in named.items()),
    )


def _speed(family: StudentGroup) -> Drawing | None:
    last: Mapping[str, Callable[[MethodGroup], MeanStd | None]] = {
        "images_per_second": lambda g: g.metric("images_per_second"),
        "data_wait": lambda g: g.metric("data_wait"),
    }
    speeds = [(g, s) for g in family.groups if (s := last["images_per_second"](g)) is not None][:_MOST_ROWS]
    if not speeds:
        return None
    rows = tuple(Bar(g.label, ((s.mean, f"s{g.hue}", f"{s.mean:.0f}"),), group=g.key) for g, s in speeds)
    waits = [(g, s) for g in family.groups if (s := last["data_wait"](g)) is not None][:_MOST_ROWS]
    waiting = tuple(Bar(g.label, ((100 * s.mean, f"s{g.hue}", f"{100 * s.mean:.0f}"),), group=g.key) for g, s in waits)
    panels = [Bars("throughput", "training images a second", rows)]
    panels += [Bars("data wait", "time waiting for images (%)", waiting)] if waiting else []
    summary = ", ".join(f"{g.label} {s.mean:.0f}" for g, s in speeds)
    return Drawing(
        f"{family.key}-speed",
        "Speed of the training",
        "Training images a second, and the share of the time in which the training waited for images. Above some ten "
        "percent of waiting more loader processes (--workers) or smaller images make it faster; below, the networks are "
        "what takes the time.",
        f"Images a second: {summary}.",
        tuple(panels),
    )
