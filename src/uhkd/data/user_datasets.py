"""A user's map-style data sets: (image, label) pairs, images alone, or dicts."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uhkd.console import listed
from uhkd.data.columns import Columns, Rows, columns_note
from uhkd.data.datasets import RawSplits
from uhkd.data.labels import class_names, class_numbers, label_of, listed_labels, number_names, sampled
from uhkd.data.names import PARTS
from uhkd.data.sources import DatasetSource, ImageSource, cannot_read, relabelled
from uhkd.errors import UhkdError

_PROBES = 4
_TITLES = {"train": "the training data set", "val": "the validation data set", "test": "the test data set"}


def user_datasets(columns: Columns, labels: bool) -> tuple[str, RawSplits]:
    """Return the name and the splits of a data set, a pair (training, validation) or a dict of data sets by split.

    labels: whether labels are needed.

    Raises:
        UhkdError: data sets that cannot be used, or whose classes differ.
    """
    data = columns.data
    if not isinstance(data, tuple | list | Mapping):
        return type(data).__name__, user_dataset(columns, "the data set", labels)
    if not isinstance(data, Mapping) and len(data) != 2:
        raise UhkdError(f"data given as a {type(data).__name__} must be (train, val), found {len(data)} entries")
    given = data if isinstance(data, Mapping) else {"train": data[0], "val": data[1]}
    parts = {PARTS.get(str(name).lower(), ""): part for name, part in given.items()}  # also of a datasets.DatasetDict
    if "train" not in parts or "" in parts or len(parts) < len(given):
        raise UhkdError(f"data given as a dict must have train and, optionally, val and test, found {listed([*given])}")
    opened = {split: user_dataset(replace(columns, data=part), _TITLES[split], labels) for split, part in parts.items()}
    train, notes = opened.pop("train"), [note for raw in opened.values() for note in raw.notes]
    others: dict[str, ImageSource] = {}
    for split, raw in opened.items():
        others[split], added = by_name(raw.train, raw.classes, train.classes, _TITLES[split])
        notes += added
    return type(parts["train"]).__name__, replace(train, **others, notes=tuple(dict.fromkeys([*train.notes, *notes])))


def by_name(
    source: ImageSource, names: Sequence[str], classes: Sequence[str], title: str
) -> tuple[ImageSource, list[str]]:
    """Return a source whose labels number `names` with the numbers of `classes` instead, and a note if they differ.

    Raises:
        UhkdError: a name that is not among `classes`, or a label that has no name.
    """
    labels = source.labels
    if labels is None or not names or not classes or tuple(names) == tuple(classes):
        return source, []
    numbers = number_names(names, title, classes)
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(names):
        raise UhkdError(f"{title} has labels outside 0 to {len(names) - 1}, the numbers of its {len(names)} classes")
    some = f"only {len(names)} of the {len(classes)} classes"
    how = "the classes in another order" if len(names) == len(classes) else some
    return relabelled(source, numbers[labels]), [f"{title} lists {how}: labels are matched by class name"]


def user_dataset(columns: Columns, title: str, labels: bool = True) -> RawSplits:
    """Return a map-style data set of (image, label) pairs, of images alone or of dicts, as a training split.

    Raises:
        UhkdError: not map-style, empty, or with items or labels of another type.
    """
    dataset: Any = columns.data
    if isinstance(dataset, str | Path) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UhkdError(f"{title} must have __len__ and __getitem__ (map-style), found {type(dataset).__name__}")
    if len(dataset) == 0:
        raise UhkdError(f"{title} is empty: expected (image, label) pairs")
    first, notes, numbers = _item(dataset, 0, title), [], None
    if by_columns := isinstance(first, Mapping):
        dataset = Rows(columns, first, labels)
        notes.append(columns_note(title, dataset.image, dataset.label))
        first = _item(dataset, 0, title)
    classes = class_names(dataset)
    if isinstance(first, tuple | list) and len(first) > 1:
        # labels that are ignored still determine the split, if they can be used
        with nullcontext() if labels else suppress(UhkdError):
            numbers, classes, added = _labels(dataset, title)
            notes += added
    source = DatasetSource(dataset, numbers, title)
    probes = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, _PROBES)})
    images = [source.image(i) for i in probes]
    if any(not np.array_equal(image, source.image(i)) for i, image in zip(probes, images, strict=True)):
        source.steady = False
        notes.append(
            f"{title} gives another image each time it is read: remove its random transforms "
            "(uhkd augments the images), else a run can be neither resumed nor repeated exactly"
        )
    sizes = {(image.shape[-2], image.shape[-1]) for image in images}
    size = sizes.pop() if len(sizes) == 1 else None
    return RawSplits(classes, source, None, None, size, tuple(notes), by_columns)


def _labels(dataset: Any, title: str) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return labels (N,), class names and notes: those the data set lists if a sample of the items agrees, else all items'."""
    why = "it lists them in no attribute such as targets"
    if (listing := listed_labels(dataset)) is not None:
        values, names = listing
        other = next((i for i in sampled(values) if not _agrees(values[i], dataset, i, title)), None)
        if other is None:
            return class_numbers(values, title, names)
        why = f"those it lists differ from its items (item {other})"
    values = [_label(dataset, i, title) for i in range(len(dataset))]
    numbers, classes, notes = class_numbers(values, title, class_names(dataset))
    return numbers, classes, [f"labels of {title} are read from all {len(dataset):,} items, because {why}", *notes]


def _agrees(label: Any, dataset: Any, index: int, title: str) -> bool:
    where = f"item {index} of {title}"
    expected = label_of(_label(dataset, index, title), where)[1]
    try:
        return label_of(label, where)[1] == expected
    except UhkdError:  # not a list of labels
        return False


def _label(dataset: Any, index: int, title: str) -> Any:
    item = _item(dataset, index, title)
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UhkdError(f"item {index} of {title} is a {type(item).__name__}: expected (image, label); remove it")
    return item[1]


def _item(dataset: Any, index: int, title: str) -> Any:
    try:
        return dataset[index]
    except Exception as error:  # the user's own code may raise anything
        raise UhkdError(cannot_read(index, title, error)) from error
