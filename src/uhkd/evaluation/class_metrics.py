"""Precision, recall and F1 by class and in the mean, and the most frequent confusions."""

from collections.abc import Sequence
from typing import Any

from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from uhkd.evaluation.metrics import Evaluation

_METRICS = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}


def class_metrics(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """Return metrics of classes as fractions, and counts.

    precision, recall, f1: mean over the classes that occur in labels or predictions; balanced_accuracy: mean recall of the
    classes that have images (as in scikit-learn). per_class: for each class in the order of the outputs its name, `images`,
    precision, recall and f1, 0 where nothing is counted. confusion: images by [true class][predicted class]. names: of the
    classes; empty: their numbers.
    """
    logits, labels, k = evaluation.logits, evaluation.labels, evaluation.logits.shape[1]
    images = labels.bincount(minlength=k).tolist()
    by_class = {name: f(logits, labels, num_classes=k, average="none").tolist() for name, f in _METRICS.items()}
    rows = zip(names or map(str, range(k)), images, *by_class.values(), strict=True)
    present = [recall for recall, count in zip(by_class["recall"], images, strict=True) if count]
    return {
        "balanced_accuracy": sum(present) / len(present),
        **{name: f(logits, labels, num_classes=k, average="macro").item() for name, f in _METRICS.items()},
        "per_class": [dict(zip(("class", "images", *by_class), row, strict=True)) for row in rows],
        "confusion": evaluation.confusion().tolist(),
    }


def top_confusions(confusion: Sequence[Sequence[int]], count: int) -> list[tuple[int, int, int]]:
    """Return the most frequent (images, true class, predicted class) of wrong predictions, at most `count`."""
    pairs = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j]
    return sorted(pairs, key=lambda pair: -pair[0])[:count]
