"""The figures of what networks name the images: gains by class, confusions that changed, agreement."""

from collections.abc import Iterator, Sequence

import numpy as np

from uhkd.reporting.aggregates import (
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

_MOST_NAMES = 26  # of an agreement matrix: cells of a phone's width
_NAMED_COLUMNS = 12
_MOST_CLASSES = 24


def compared(family: StudentGroup) -> tuple[str, list[np.ndarray], list[np.ndarray], np.ndarray] | None:
    """Name and predictions of what the focus is compared with, predictions of the focus, and the labels."""
    labels = labels_of(family)
    if labels is None:
        return None
    after = predicted(family.focus, labels)
    if family.baseline is not None and (before := predicted(family.baseline, labels)) and after:
        return family.baseline.label, before, after, labels
    if (predictions := teacher_predictions(family.focus.teacher, labels)) is not None and after:
        return "teacher", [predictions], after, labels
    return None


def _hue_of(name: str, family: StudentGroup) -> str:
    """The colour of what the focus is compared with: a group's, or the teacher's."""
    return next((f"s{g.hue}" for g in family.groups if g.label == name), "ink")


def by_class(family: StudentGroup) -> Drawing | None:
    """Accuracy on each class minus that of what the focus is compared with."""
    known = compared(family)
    if known is None:
        return None
    name, before, after, labels = known
    found = gains(before, after, labels, classes_of(family))
    half, own, other = _MOST_CLASSES // 2, f"s{family.focus.hue}", _hue_of(name, family)
    some = found if len(found) <= _MOST_CLASSES else [*found[:half], *found[-half:]]
    rows = tuple(Bar(g.name, ((g.points, own if g.points >= 0 else other, f"{g.points:+.0f}"),)) for g in some)
    fewer = (
        ""
        if len(some) == len(found)
        else f" The {half} that gained and the {half} that lost most of {len(found)} classes."
    )
    up, down = sum(g.points > 0 for g in found), sum(g.points < 0 for g in found)
    few = min(g.images for g in found)
    return Drawing(
        f"{family.key}-classes",
        f"Gain by class: {family.focus.label} against {name}",
        f"Accuracy on each class minus that of {name}, in points.{fewer} Look for classes that lost: a better mean can hide "
        f"them. The smallest class has {few} images, where one image is {100 / few:.0f} points.",
        f"{up} classes gained and {down} lost. Best: {found[0].name} {found[0].points:+.1f}; worst: {found[-1].name} "
        f"{found[-1].points:+.1f} points.",
        (Bars("", "points", rows),),
    )


def confusions(family: StudentGroup) -> Drawing | None:
    """The pairs of classes that are mixed up more or less often."""
    known = compared(family)
    if known is None:
        return None
    name, before, after, labels = known
    found = confusion_changes(before, after, labels, classes_of(family))
    if not found:
        return None
    own, other = f"s{family.focus.hue}", _hue_of(name, family)
    rows = tuple(
        Bar(f"{c.true} → {c.named}", ((c.before, other, f"{c.before:.3g}"), (c.after, own, f"{c.after:.3g}")))
        for c in found
    )
    best, worst = found[0], found[-1]
    look = "Long bars that became short are mistakes that were cured; new long bars are new mistakes."
    if name.startswith("teacher"):
        look = "Long lower bars are mistakes that the teacher does not make."
    return Drawing(
        f"{family.key}-confusions",
        f"Confusions that changed: {family.focus.label} against {name}",
        f"Images of the class before the arrow that were named as the class behind it: above by {name}, below by "
        f"{family.focus.label}. {look}",
        f"Fell most: {best.true} named {best.named}, {best.before:.3g} to {best.after:.3g} images. "
        f"Rose most: {worst.true} named {worst.named}, {worst.before:.3g} to {worst.after:.3g} images.",
        (Bars("", "images", rows),),
        legend=((name, other, 0, None), (family.focus.label, own, 0, None)),
    )


def agreements(family: StudentGroup) -> Drawing | None:
    """Who names the same class as who."""
    found = agreement(family)
    if found is None or len(found[0]) < 2:
        return None
    names, matrix = found
    names, matrix = names[:_MOST_NAMES], matrix[:_MOST_NAMES, :_MOST_NAMES]
    values = [[float(v) for v in row] for row in matrix]
    rows, columns = names, names
    if len(names) > _NAMED_COLUMNS:  # names would lie over each other
        rows, columns = [f"{i + 1} {name}" for i, name in enumerate(names)], [str(i + 1) for i in range(len(names))]
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    return Drawing(
        f"{family.key}-agreement",
        "Agreement",
        "For how many of the validation images (percent) two name the same class; '(labels)' is the accuracy. On the "
        "diagonal a group with itself over different seeds. A student that agrees with the teacher more than with the "
        "labels also copies mistakes.",
        "Agreement in percent. " + "; ".join(_agreeing(names, values)),
        (Heat("", "", "", tuple(rows), tuple(columns), values, min(float(off.min()), 99.0), 100.0, 0),),
    )


def _agreeing(names: Sequence[str], values: Sequence[Sequence[float]]) -> Iterator[str]:
    reference = next((i for i, name in enumerate(names) if name.startswith("teacher")), 0)
    for i, name in enumerate(names):
        if i != reference:
            yield f"{name} with {names[reference]} {values[i][reference]:.0f}"
