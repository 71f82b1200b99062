"""A user's map-style data sets: (image, label) pairs, images alone, or dicts."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uhkd.console import listed, log_info
from uhkd.data.columns import Columns, by_columns
from uhkd.data.datasets import RawSplits
from uhkd.data.labels import class_names, class_numbers, label_of, listed_labels
from uhkd.data.names import PARTS
from uhkd.data.sources import DatasetSource, ImageSource, cannot_read, relabelled
from uhkd.errors import UhkdError

_PROBES = 4
_LONG = 10_000  # items, from which on it is said beforehand that all of them are read


def user_datasets(columns: Columns, labels: bool) -> tuple[str, RawSplits]:
    """Return the name and the splits of a data set, a pair (training, validation) or a dict of them by part.

    Args:
        columns: the data sets, with the names of their columns if their items are dicts.
        labels: whether labels are needed.

    Raises:
        UhkdError: data sets that cannot be used, or whose classes differ.
    """
    data = columns.data
    if isinstance(data, Mapping):  # such as datasets.DatasetDict
        parts = {PARTS.get(str(name).lower(), ""): part for name, part in data.items()}
        if "train" not in parts or "" in parts or len(parts) < len(data):
            raise UhkdError(f"data given as a dict must be of train, val and test, found {listed([*data])}")
    elif isinstance(data, tuple | list):
        if len(data) != 2:
            raise UhkdError(f"data given as a {type(data).__name__} must be (train, val), found {len(data)} entries")
        parts = dict(zip(("train", "val"), data, strict=True))
    else:
        return type(data).__name__, user_dataset(columns, "the data set", labels)
    titles = {"train": "the training data set", "val": "the validation data set", "test": "the test data set"}
    opened = {
        part: user_dataset(replace(columns, data=parts[part]), title, labels)
        for part, title in titles.items()
        if part in parts
    }
    train, sources, notes = opened["train"], {}, []
    for part, split in opened.items():
        sources[part], added = by_name(split.train, split.classes, train.classes, titles[part])
        notes += [*split.notes, *added]
    name = type(parts["train"]).__name__
    return name, replace(train, val=sources.get("val"), test=sources.get("test"), notes=tuple(dict.fromkeys(notes)))


def by_name(
    source: ImageSource, names: Sequence[str], classes: Sequence[str], title: str
) -> tuple[ImageSource, tuple[str, ...]]:
    """Return a source with its classes `names` numbered as in `classes`, and a note if the numbers changed.

    Raises:
        UhkdError: a name that is not among `classes`.
    """
    if source.labels is None or not names or not classes or tuple(names) == tuple(classes):
        return source, ()
    if unknown := [name for name in names if name not in classes]:
        raise UhkdError(
            f"{title} has classes that are not among those expected: {listed(unknown)}; expected only: {listed(classes)}"
        )
    numbers = np.array([list(classes).index(name) for name in names], dtype=np.int64)
    if source.labels.min(initial=0) < 0 or source.labels.max(initial=0) >= len(names):
        raise UhkdError(f"{title} has labels outside 0 to {len(names) - 1}, the numbers of its {len(names)} classes")
    order = "in another order" if len(names) == len(classes) else f"only {len(names)} of {len(classes)}"
    note = f"{title} lists the classes {order}: its labels are matched by class name"
    return relabelled(source, numbers[source.labels]), (note,)


def user_dataset(columns: Columns, title: str, labels: bool = True) -> RawSplits:
    """Return a map-style data set of (image, label) pairs, of images alone or of dicts, as a training split.

    Raises:
        UhkdError: not map-style, empty, or with items or labels of another type.
    """
    dataset = columns.data
    if isinstance(dataset, str | Path) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UhkdError(f"{title} must have __len__ and __getitem__ (map-style), found {type(dataset).__name__}")
    if len(dataset) == 0:
        raise UhkdError(f"{title} is empty: expected (image, label) pairs")
    first, notes = _item(dataset, 0, title), []
    if isinstance(first, Mapping):
        dataset, notes = by_columns(columns, first, title, labels)
    item = _item(dataset, 0, title)
    numbers, classes = None, class_names(dataset)
    if isinstance(item, tuple | list) and len(item) > 1:
        # ignored labels still fix how the images are split, if they can be read
        with nullcontext() if labels else suppress(UhkdError):
            numbers, classes, added = _labels(dataset, classes, title)
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
    return RawSplits(classes, source, None, None, size, tuple(notes), by_columns=isinstance(first, Mapping))


def _labels(dataset: Any, classes: tuple[str, ...], title: str) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return the labels (N,), class names and notes: as listed if a sample of the items agrees, otherwise of all items."""
    listing = listed_labels(dataset)
    if listing is None:
        why = "it lists them in no attribute such as targets"
    else:
        other = next((i for i in listing.positions() if not _agrees(listing.labels[i], dataset, i, title)), None)
        if other is None:
            return class_numbers(listing.labels, title, listing.names)
        why = f"the list of them differs from its items (item {other})"
    note = f"labels of {title} are read from all {len(dataset):,} items, because {why}"
    if len(dataset) >= _LONG:
        log_info(f"  {note}; this may take a while")
    values = [_item(dataset, i, title)[1] for i in range(len(dataset))]
    numbers, classes, notes = class_numbers(values, title, classes)
    return numbers, classes, [note, *notes]


def _agrees(listed_label: Any, dataset: Any, index: int, title: str) -> bool:
    where = f"item {index} of {title}"
    label = label_of(_item(dataset, index, title)[1], where)[1]
    try:
        return label_of(listed_label, where)[1] == label
    except UhkdError:  # another kind of list
        return False


def _item(dataset: Any, index: int, title: str) -> Any:
    try:
        return dataset[index]
    except Exception as error:  # the user's own code may raise anything
        raise UhkdError(cannot_read(index, title, error)) from error
