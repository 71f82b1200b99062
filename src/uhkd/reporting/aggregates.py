"""What predictions and arrays of runs say, in numbers: gains by class, confusions, agreement, errors by frequency, examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from uhkd.reporting.grouping import MethodGroup, StudentGroup, Teacher
from uhkd.reporting.run_data import Run

Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class ClassGain:
    """Accuracy on one class, in percent: of the baseline, of the other, and the images of the class."""

    name: str
    before: float
    after: float
    images: int

    @property
    def points(self) -> float:
        """The difference in percentage points."""
        return self.after - self.before


@dataclass(frozen=True)
class Confusion:
    """How often images of one class are named another: of the baseline and of the other, in images (means over seeds)."""

    true: str
    named: str
    before: float
    after: float


@dataclass(frozen=True)
class Example:
    """One validation image on which networks differ. thumbnail: its place on the sheet. said: class and probability by name."""

    thumbnail: int
    index: int
    true: str
    predictions: tuple[tuple[str, str, float | None, bool], ...]
    kind: str


def class_name(classes: Sequence[str], index: int) -> str:
    """The class's name, or its number."""
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def accuracy_by_class(predictions: Sequence[Labels], labels: Labels) -> dict[int, float]:
    """Percent right of each class that has images, mean over several predictions."""
    right = np.mean([p == labels for p in predictions], axis=0)
    return {int(c): 100 * float(right[labels == c].mean()) for c in np.unique(labels)}


def gains(before: Sequence[Labels], after: Sequence[Labels], labels: Labels, classes: Sequence[str]) -> list[ClassGain]:
    """Every class, the greatest gain first."""
    one, two = accuracy_by_class(before, labels), accuracy_by_class(after, labels)
    found = [ClassGain(class_name(classes, c), one[c], two[c], int((labels == c).sum())) for c in one]
    return sorted(found, key=lambda gain: (-gain.points, gain.name))


def confusion_changes(
    before: Sequence[Labels], after: Sequence[Labels], labels: Labels, classes: Sequence[str], most: int = 12
) -> list[Confusion]:
    """The confusions whose number changed most, those that became rarer and those that became more frequent."""

    def counts(predictions: Sequence[Labels]) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        for predicted in predictions:
            wrong = predicted != labels
            for pair in zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True):
                found[pair] = found.get(pair, 0.0) + 1 / len(predictions)
        return found

    one, two = counts(before), counts(after)
    pairs = sorted({*one, *two}, key=lambda p: (-abs(two.get(p, 0) - one.get(p, 0)), p))[:most]
    named = [
        (class_name(classes, t), class_name(classes, p), one.get((t, p), 0.0), two.get((t, p), 0.0)) for t, p in pairs
    ]
    return sorted((Confusion(*n) for n in named), key=lambda c: c.after - c.before)


def predicted(group: MethodGroup, labels: Labels) -> list[Labels]:
    """The predictions of those runs of a group that have the same validation images."""
    found = [run.predictions() for run in group.runs if same_images(run, labels)]
    return [p for p in found if p is not None]


def same_images(run: Run, labels: Labels) -> bool:
    """Whether a run was validated on images with these labels."""
    return run.labels is not None and np.array_equal(run.labels, labels)


def teacher_predictions(teacher: Teacher | None, labels: Labels) -> Labels | None:
    """What a teacher says of the images with these labels; None where that was not recorded."""
    predictions = None if teacher is None else teacher.prediction
    return predictions if predictions is not None and predictions.shape == labels.shape else None


def labels_of(family: StudentGroup) -> Labels | None:
    """The classes of the validation images of a family, as the first run that noted them says."""
    found = (run.labels for group in family.groups for run in group.runs if run.predictions() is not None)
    return next(found, None)


def classes_of(family: StudentGroup) -> tuple[str, ...]:
    """Names of the classes."""
    return next((run.classes for group in family.groups for run in group.runs if run.classes), ())


def agreement(family: StudentGroup) -> tuple[list[str], Float[np.ndarray, "k k"]] | None:
    """Share of validation images, in percent, for which two name the same class: teachers and groups with each other.

    Between groups the mean over all pairs of their runs; within a group, over pairs of different seeds (100 for one seed).
    """
    labels = labels_of(family)
    if labels is None:
        return None
    teachers = {
        t.name: predictions for t in family.teachers if (predictions := teacher_predictions(t, labels)) is not None
    }
    known: list[tuple[str, list[Labels]]] = [("(labels)", [labels])]
    known += [
        ("teacher" if len(teachers) == 1 else f"teacher {name}", [predictions])
        for name, predictions in teachers.items()
    ]
    known += [(g.label, found) for g in family.groups if (found := predicted(g, labels))]
    matrix = np.zeros((len(known), len(known)))
    for i, (_, one) in enumerate(known):
        for j, (_, two) in enumerate(known[: i + 1]):
            pairs = [(a, b) for a in one for b in two if i != j or a is not b] or [(one[0], one[0])]
            matrix[i, j] = matrix[j, i] = 100 * np.mean([(a == b).mean() for a, b in pairs])
    return [name for name, _ in known], matrix


def by_frequency(
    error: Float[np.ndarray, "t k"], frequency: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, "t f"]]:
    """Errors averaged over coefficients of one frequency (to a tenth of a cycle), frequencies rising."""
    rounded = np.round(frequency.astype(float), 1)
    values = np.unique(rounded[np.isfinite(rounded)])
    return values, np.stack([error[:, rounded == value].mean(1) for value in values], axis=1)


KINDS = {
    "won": "{focus} is right, {base} is wrong",
    "lost": "{focus} is wrong, {base} is right",
    "behind": "{focus} is wrong, the teacher is right",
    "above": "{focus} is right, the teacher is wrong",
    "taken": "{focus} repeats the teacher's mistake",
}


def examples(family: StudentGroup, most: int = 6) -> list[Example]:
    """Images among the thumbnails on which teacher, baseline and the student in focus differ, up to `most` of each kind."""
    focus, base, labels = family.focus, family.baseline, labels_of(family)
    if labels is None:
        return []
    shown = next((s for r in focus.runs if same_images(r, labels) and (s := r.array("val_shown", 1)) is not None), None)
    if shown is None or (shown < 0).any() or (shown >= len(labels)).any():
        return []
    columns: list[tuple[str, Labels, np.ndarray | None]] = []
    if focus.teacher is not None and (predictions := teacher_predictions(focus.teacher, labels)) is not None:
        columns.append(("teacher", predictions, focus.teacher.confidence))
    others = [g for g in family.groups if g.method == "kd" and g is not focus and g is not base][:1]
    for group in (*([base] if base else []), *others, focus):
        run = next((r for r in group.runs if same_images(r, labels) and r.predictions() is not None), None)
        if run is not None and (predictions := run.predictions()) is not None:
            columns.append((group.label, predictions, run.array("val_confidence", 1)))
    known = {name: predictions for name, predictions, _ in columns}
    if focus.label not in known:
        return []
    classes, found = classes_of(family), []
    right = {name: predictions == labels for name, predictions in known.items()}
    own = right[focus.label]
    masks: dict[str, np.ndarray] = {}
    if base is not None and base.label in known:
        masks |= {"won": own & ~right[base.label], "lost": ~own & right[base.label]}
    if "teacher" in known:
        masks |= {} if masks else {"behind": ~own & right["teacher"]}
        masks |= {"above": own & ~right["teacher"]}
        masks |= {"taken": ~own & (known["teacher"] == known[focus.label])}
    used: set[int] = set()
    for kind, mask in masks.items():
        chosen = [place for place, index in enumerate(shown.tolist()) if mask[index] and place not in used][:most]
        used |= {*chosen}
        for place in chosen:
            index = int(shown[place])
            lines = []
            for name, prediction, confidence in columns:
                sure = None if confidence is None or len(confidence) != len(labels) else float(confidence[index])
                lines.append((name, class_name(classes, int(prediction[index])), sure, bool(right[name][index])))
            found.append(Example(place, index, class_name(classes, int(labels[index])), tuple(lines), kind))
    return found
