"""Tables of `eval`: metrics as trained and with the temperature, metrics by class, confusions."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from uhkd.console import escape
from uhkd.evaluation.class_metrics import top_confusions

_ALL, _SOME = 20, 10
"""Classes up to which all are shown, and how many where not."""
_MATRIX = 12
"""Classes up to which the confusion matrix is shown."""
_FRACTIONS = ("accuracy", "top5", "balanced_accuracy", "precision", "recall", "f1", "ece", "gap")
_CALIBRATED = "_calibrated"


def metric_table(metrics: Mapping[str, Any], title: str, machine: str) -> Table:
    """Return the numbers in `metrics`; those that the temperature changes have a second column, if it is not 1.

    machine: name of the device of the latency.
    """
    temperature = metrics["temperature"]
    columns = ("value",) if temperature == 1 else ("as trained", f"temperature {temperature:.3g}")
    table = Table("metric", *columns, title=escape(title), caption=escape(f"latency: one image, {machine}"))
    for name, value in metrics.items():
        if isinstance(value, float) and not name.endswith(_CALIBRATED) and name != "temperature":
            values = [value, metrics[name + _CALIBRATED]] if name + _CALIBRATED in metrics else [value]
            form = "+.2%" if name == "gap" else ".2%" if name in _FRACTIONS else ".4g"
            table.add_row(name, *(format(x, form) for x in values[: len(columns)]))
    return table


def class_tables(metrics: Mapping[str, Any], *, full: bool) -> list[Table]:
    """Return the table by class, and the confusion matrix or the most frequent confusions.

    full: all classes, and the matrix; otherwise many classes are cut to those with the lowest F1.
    """
    rows, confusion = metrics["per_class"], metrics["confusion"]
    names, title, shown = [escape(row["class"]) for row in rows], "by class", rows
    if len(rows) > _ALL and not full:
        shown = sorted((row for row in rows if row["images"]), key=lambda row: row["f1"])[:_SOME]
        title = f"lowest F1 of {len(rows)} classes (all: --per-class)"
    by_class = Table("class", "images", "precision", "recall", "F1", title=title)
    for row in shown:
        fractions = (f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
        by_class.add_row(escape(row["class"]), str(row["images"]), *fractions)
    if full or len(rows) <= _MATRIX:
        matrix = Table("class", *names, title="images by class (row) and prediction (column)")
        for name, counts in zip(names, confusion, strict=True):
            matrix.add_row(name, *map(str, counts))
        return [by_class, matrix]
    pairs = Table("class", "predicted as", "images", "of", title="most frequent confusions")
    for images, true, predicted in top_confusions(confusion, _SOME):
        pairs.add_row(names[true], names[predicted], str(images), str(rows[true]["images"]))
    return [by_class, pairs]
