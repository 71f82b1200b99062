"""Figures of predictions: gains by class, confusions that changed, agreement."""

from typing import NamedTuple

import numpy as np

from uhkd.reporting.aggregates import (
    Labels,
    agreement,
    classes_of,
    confusion_changes,
    gains,
    labels_of,
    predicted,
    teacher_predictions,
)
from uhkd.reporting.figure_data import Bar, Bars, Drawing, Heat
from uhkd.reporting.grouping import StudentGroup

_MAX_NAMES = 26  # rows of the agreement matrix that fit on a phone
_MAX_NAMED_COLUMNS = 12
_MAX_CLASSES = 24


class Comparison(NamedTuple):
    """Name, colour and predictions of the reference, predictions of the group in focus, and the labels."""

    name: str
    hue: str
    before: list[Labels]
    after: list[Labels]
    labels: Labels


def compared(student_group: StudentGroup) -> Comparison | None:
    """Return the group in focus with its reference: the baseline, otherwise the teacher; None without predictions."""
    labels = labels_of(student_group)
    if labels is None or not (after := predicted(student_group.focus, labels)):
        return None
    if (base := student_group.baseline) is not None and (before := predicted(base, labels)):
        return Comparison(base.label, f"s{base.hue}", before, after, labels)
    if (predictions := teacher_predictions(student_group.focus.teacher, labels)) is not None:
        return Comparison("teacher", "ink", [predictions], after, labels)
    return None


def by_class(student_group: StudentGroup) -> Drawing | None:
    """Return the figure of the accuracy on each class minus that of the reference."""
    comparison = compared(student_group)
    if comparison is None:
        return None
    name, hue, before, after, labels = comparison
    by_gain = gains(before, after, labels, classes_of(student_group))
    half, focus_hue, shown, left_out = _MAX_CLASSES // 2, f"s{student_group.focus.hue}", by_gain, ""
    if len(by_gain) > _MAX_CLASSES:
        shown = [*by_gain[:half], *by_gain[-half:]]
        left_out = f" The {half} that gained and the {half} that lost most of {len(by_gain)} classes."
    rows = tuple(Bar(g.name, ((g.points, focus_hue if g.points >= 0 else hue, f"{g.points:+.0f}"),)) for g in shown)
    up, down = sum(g.points > 0 for g in by_gain), sum(g.points < 0 for g in by_gain)
    smallest = min(g.images for g in by_gain)
    best, worst = by_gain[0], by_gain[-1]
    return Drawing(
        f"{student_group.key}-classes",
        f"Gain by class: {student_group.focus.label} against {name}",
        f"Accuracy on each class minus that of {name}, in percentage points.{left_out} Look for classes that lost: a better "
        f"mean can hide them. The smallest class has {smallest} images; one image is {100 / smallest:.0f} points.",
        f"{up} classes gained and {down} lost. Best: {best.name} {best.points:+.1f}; worst: {worst.name} "
        f"{worst.points:+.1f} points.",
        (Bars("", "points", rows),),
    )


def confusions(student_group: StudentGroup) -> Drawing | None:
    """Return the figure of pairs of classes that are confused more or less often than by the reference."""
    comparison = compared(student_group)
    if comparison is None:
        return None
    name, hue, before, after, labels = comparison
    changes = confusion_changes(before, after, labels, classes_of(student_group))
    if not changes:
        return None
    focus, focus_hue = student_group.focus.label, f"s{student_group.focus.hue}"
    rows = tuple(
        Bar(f"{c.true} → {c.named}", ((c.before, hue, f"{c.before:.3g}"), (c.after, focus_hue, f"{c.after:.3g}")))
        for c in changes
    )
    reading = "Long bars that became short are mistakes that were corrected; new long bars are new mistakes."
    if name.startswith("teacher"):
        reading = "Long lower bars are mistakes that the teacher does not make."
    less, more = (
        f"{c.true} predicted as {c.named}, {c.before:.3g} to {c.after:.3g} images" for c in (changes[0], changes[-1])
    )
    return Drawing(
        f"{student_group.key}-confusions",
        f"Confusions that changed: {focus} against {name}",
        f"Images of the class before the arrow that were predicted as the class after it: upper bar by {name}, lower bar by "
        f"{focus}. {reading}",
        f"Largest decrease: {less}. Largest increase: {more}.",
        (Bars("", "images", rows),),
        legend=((name, hue, 0, None), (focus, focus_hue, 0, None)),
    )


def agreements(student_group: StudentGroup) -> Drawing | None:
    """Return the figure of how often two networks predict the same class."""
    matrix_of = agreement(student_group)
    if matrix_of is None or len(matrix_of[0]) < 2:
        return None
    names, matrix = matrix_of[0][:_MAX_NAMES], matrix_of[1][:_MAX_NAMES, :_MAX_NAMES]
    values = [[float(v) for v in row] for row in matrix]
    rows, columns = names, names
    if len(names) > _MAX_NAMED_COLUMNS:  # names would overlap
        rows, columns = [f"{i + 1} {name}" for i, name in enumerate(names)], [str(i + 1) for i in range(len(names))]
    lowest = float(matrix[~np.eye(len(matrix), dtype=bool)].min())
    reference = next((i for i, name in enumerate(names) if name.startswith("teacher")), 0)
    text = "; ".join(
        f"{name} with {names[reference]} {values[i][reference]:.0f}" for i, name in enumerate(names) if i != reference
    )
    return Drawing(
        f"{student_group.key}-agreement",
        "Agreement",
        "Percentage of validation images for which two networks predict the same class; '(labels)' is the accuracy. On the "
        "diagonal: agreement between different seeds of a group. A student that agrees more with the teacher than with the "
        "labels also copies the teacher's mistakes.",
        f"Agreement in percent. {text}",
        (Heat("", "", "", tuple(rows), tuple(columns), values, min(lowest, 99.0), 100.0, 0),),
    )
