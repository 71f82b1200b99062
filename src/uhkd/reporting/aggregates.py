"""Statistics of predictions and arrays: gains by class, confusions, agreement, errors by frequency, and example images."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from uhkd.reporting.grouping import MethodGroup, StudentGroup, Teacher
from uhkd.reporting.run_data import Run

Labels = Int[np.ndarray, " n"]

KINDS = {
    "won": "{focus} is right, {base} is wrong",
    "lost": "{focus} is wrong, {base} is right",
    "behind": "{focus} is wrong, the teacher is right",
    "above": "{focus} is right, the teacher is wrong",
    "taken": "{focus} repeats the teacher's mistake",
}


@dataclass(frozen=True)
class ClassGain:
    """Accuracy on one class, in percent, of the baseline and of the other method, and the number of its images."""

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
    """Number of images of class `true` predicted as `named`, by the baseline and by the other method; means over seeds."""

    true: str
    named: str
    before: float
    after: float


@dataclass(frozen=True)
class Example:
    """A validation image on which networks differ.

    thumbnail: its position on the sheet. predictions: network, class, probability (None: not recorded) and whether it is right.
    """

    thumbnail: int
    index: int
    true: str
    predictions: tuple[tuple[str, str, float | None, bool], ...]
    kind: str


def class_name(classes: Sequence[str], index: int) -> str:
    """Return the name of a class, or "class N" where it has none."""
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def accuracy_by_class(predictions: Sequence[Labels], labels: Labels) -> dict[int, float]:
    """Return the accuracy in percent on each class that has images, as the mean over several predictions."""
    right = np.mean([p == labels for p in predictions], axis=0)
    return {int(c): 100 * float(right[labels == c].mean()) for c in np.unique(labels)}


def gains(before: Sequence[Labels], after: Sequence[Labels], labels: Labels, classes: Sequence[str]) -> list[ClassGain]:
    """Return the gain on every class, the largest first."""
    old, new = accuracy_by_class(before, labels), accuracy_by_class(after, labels)
    by_class = [ClassGain(class_name(classes, c), old[c], new[c], int((labels == c).sum())) for c in old]
    return sorted(by_class, key=lambda gain: (-gain.points, gain.name))


def confusion_changes(
    before: Sequence[Labels], after: Sequence[Labels], labels: Labels, classes: Sequence[str], most: int = 12
) -> list[Confusion]:
    """Return the `most` confusions with the largest change, from the largest decrease to the largest increase."""

    def counts(predictions: Sequence[Labels]) -> Counter[tuple[int, int]]:
        wrong = [(labels[p != labels].tolist(), p[p != labels].tolist()) for p in predictions]
        return Counter(pair for true, named in wrong for pair in zip(true, named, strict=True))

    old, new = counts(before), counts(after)
    changes = [(pair, old[pair] / len(before), new[pair] / len(after)) for pair in {*old, *new}]
    largest = sorted(changes, key=lambda change: (-abs(change[2] - change[1]), change[0]))[:most]
    confusions = [Confusion(class_name(classes, t), class_name(classes, p), b, a) for (t, p), b, a in largest]
    return sorted(confusions, key=lambda c: c.after - c.before)


def predicted(group: MethodGroup, labels: Labels) -> list[Labels]:
    """Return the predictions of those runs of a group that have the same validation images."""
    predictions = [run.predictions() for run in group.runs if same_images(run, labels)]
    return [p for p in predictions if p is not None]


def same_images(run: Run, labels: Labels) -> bool:
    """Return whether a run was validated on images with these labels."""
    return run.labels is not None and np.array_equal(run.labels, labels)


def teacher_predictions(teacher: Teacher | None, labels: Labels) -> Labels | None:
    """Return the teacher's predictions for the images with these labels, or None where they were not recorded."""
    predictions = None if teacher is None else teacher.prediction
    return predictions if predictions is not None and predictions.shape == labels.shape else None


def labels_of(student_group: StudentGroup) -> Labels | None:
    """Return the labels of the validation images, from the first run that recorded predictions."""
    labels = (run.labels for group in student_group.groups for run in group.runs if run.predictions() is not None)
    return next(labels, None)


def classes_of(student_group: StudentGroup) -> tuple[str, ...]:
    """Return the names of the classes; empty where no run has them."""
    return next((run.classes for group in student_group.groups for run in group.runs if run.classes), ())


def agreement(student_group: StudentGroup) -> tuple[list[str], Float[np.ndarray, "k k"]] | None:
    """Return names and, for each pair of them, the percentage of validation images with the same predicted class.

    The names are the labels, the teachers and the groups. Between groups it is the mean over all pairs of their runs; within a
    group, the mean over pairs of different seeds (100 for one seed).
    """
    labels = labels_of(student_group)
    if labels is None:
        return None
    networks = [("(labels)", [labels])]
    teachers = {t.name: p for t in student_group.teachers if (p := teacher_predictions(t, labels)) is not None}
    networks += [("teacher" if len(teachers) == 1 else f"teacher {name}", [p]) for name, p in teachers.items()]
    networks += [(group.label, runs) for group in student_group.groups if (runs := predicted(group, labels))]
    matrix = np.zeros((len(networks), len(networks)))
    for i, (_, rows) in enumerate(networks):
        for j, (_, columns) in enumerate(networks[: i + 1]):
            pairs = [(a, b) for a in rows for b in columns if i != j or a is not b] or [(rows[0], rows[0])]
            matrix[i, j] = matrix[j, i] = 100 * np.mean([(a == b).mean() for a, b in pairs])
    return [name for name, _ in networks], matrix


def by_frequency(
    error: Float[np.ndarray, "t k"], frequency: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, "t f"]]:
    """Return frequencies in ascending order (rounded to 0.1 cycles) and the mean error over the coefficients of each."""
    rounded = np.round(frequency.astype(float), 1)
    values = np.unique(rounded[np.isfinite(rounded)])
    return values, np.stack([error[:, rounded == value].mean(1) for value in values], axis=1)


def examples(student_group: StudentGroup, most: int = 6) -> list[Example]:
    """Return thumbnails on which the teacher, the baseline and the group in focus differ, up to `most` of each of `KINDS`."""
    focus, base, labels = student_group.focus, student_group.baseline, labels_of(student_group)
    if labels is None:
        return []
    thumbnails = next(
        (t for r in focus.runs if same_images(r, labels) and (t := r.array("val_shown", 1)) is not None), None
    )
    if thumbnails is None or (thumbnails < 0).any() or (thumbnails >= len(labels)).any():
        return []
    networks = _networks(student_group, labels)
    predictions = {name: p for name, p, _ in networks}
    if focus.label not in predictions:
        return []
    classes = classes_of(student_group)
    right = {name: p == labels for name, p in predictions.items()}
    masks = _difference_masks(predictions, right, focus.label, base.label if base is not None else "")
    selected: list[Example] = []
    for kind, mask in masks.items():
        used = {example.thumbnail for example in selected}
        candidates = [(t, i) for t, i in enumerate(thumbnails.tolist()) if mask[i] and t not in used]
        for thumbnail, index in spread(candidates, labels, most):
            lines = []
            for name, prediction, confidence in networks:
                probability = None if confidence is None else float(confidence[index])
                lines.append((name, class_name(classes, int(prediction[index])), probability, bool(right[name][index])))
            selected.append(Example(thumbnail, int(index), class_name(classes, int(labels[index])), tuple(lines), kind))
    return selected


def spread(candidates: list[tuple[int, int]], labels: Labels, most: int) -> list[tuple[int, int]]:
    """Return up to `most` of the (thumbnail, image) pairs, from as many classes as possible, in their order."""
    ranks: Counter[int] = Counter()
    by_rank: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for pair in candidates:
        label = int(labels[pair[1]])
        by_rank[ranks[label]].append(pair)
        ranks[label] += 1
    selected: list[tuple[int, int]] = []
    for rank in sorted(by_rank):
        pairs = by_rank[rank]
        count = min(most - len(selected), len(pairs))
        selected += [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
    return sorted(selected)


def _networks(student_group: StudentGroup, labels: Labels) -> list[tuple[str, Labels, np.ndarray | None]]:
    """Return name, predictions and confidences of the teacher, the baseline, one KD group and the group in focus."""
    focus, base, teacher = student_group.focus, student_group.baseline, student_group.focus.teacher
    networks: list[tuple[str, Labels, np.ndarray | None]] = []
    if teacher is not None and (predictions := teacher_predictions(teacher, labels)) is not None:
        networks.append(("teacher", predictions, teacher.confidence))
    kd = [g for g in student_group.groups if g.method == "kd" and g is not focus and g is not base][:1]
    for group in (*([base] if base else []), *kd, focus):
        run = next((r for r in group.runs if same_images(r, labels) and r.predictions() is not None), None)
        if run is not None and (predictions := run.predictions()) is not None:
            networks.append((group.label, predictions, run.array("val_confidence", 1)))
    return [(name, p, c if c is not None and len(c) == len(labels) else None) for name, p, c in networks]


def _difference_masks(
    predictions: dict[str, Labels], right: dict[str, np.ndarray], focus: str, base: str
) -> dict[str, np.ndarray]:
    """Return for each kind of difference which images have it."""
    masks: dict[str, np.ndarray] = {}
    if base in predictions:
        masks |= {"won": right[focus] & ~right[base], "lost": ~right[focus] & right[base]}
    if "teacher" in predictions:
        masks |= {} if masks else {"behind": ~right[focus] & right["teacher"]}
        masks["above"] = right[focus] & ~right["teacher"]
        masks["taken"] = ~right[focus] & (predictions["teacher"] == predictions[focus])
    return masks
