"""Labels in any usual form as class numbers, and the lists of labels that data sets have beside their items."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from uhkd.console import listed
from uhkd.errors import UhkdError


def label_of(value: Any, where: str) -> tuple[str, int | str]:
    """Return the form of a label ("integers", "floats", "one-hot" or "names") and its class: a number or a name.

    Raises:
        UhkdError: no label, or not a single class; `where` names the item.
    """
    nested = isinstance(value, list | tuple) and any(isinstance(part, list | tuple) for part in value)
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=object if nested else None)
    kind, item = array.dtype.kind, array.item() if array.size == 1 else None
    if value is None or item == "" or (kind == "f" and np.isnan(array).any()):
        raise UhkdError(f"{where} has no label ({value!r}): remove it, or ignore all labels with --unlabelled")
    if isinstance(item, str):
        return "names", item
    if isinstance(item, int):
        return "integers", int(item)
    if isinstance(item, float):
        if item.is_integer():
            return "floats", int(item)
        raise UhkdError(f"{where} has the label {item:g}: expected a class, measured values are not supported")
    if array.ndim == 1 and kind in "iubf" and np.isin(array, (0, 1)).all() and array.sum() == 1:
        return "one-hot", int(array.argmax())
    keys = f" with {listed([*value])}" if isinstance(value, Mapping) else f" of shape {array.shape}"
    several = "multi-label data and probabilities are not supported, " if array.ndim == 1 else ""
    raise UhkdError(
        f"the label of {where} is a {type(value).__name__}{keys}: {several}expected one class, as an integer, a name or a "
        "one-hot vector"
    )


def number_names(names: Sequence[str], title: str, classes: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Return the positions (N,) of names in a list of classes.

    Raises:
        UhkdError: names that are not among the classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := sorted({*names} - {*numbers}):
        raise UhkdError(
            f"{title} has classes that are not among those expected: {listed(unknown)}; expected only: {listed(classes)}"
            f"{alike({*unknown, *classes}, '; ')}"
        )
    return np.array([numbers[name] for name in names], dtype=np.int64)


def alike(names: Iterable[str], before: str = "") -> str:
    """Return "Cat, cat differ only in case, ..." for the names of which this is true, after `before`; "" for none."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    similar = [name for group in groups.values() if len(group) > 1 for name in group]
    return f"{before}{listed(similar)} differ only in case, spaces or Unicode form" if similar else ""


def class_numbers(
    values: Sequence[Any] | np.ndarray, title: str, classes: Sequence[str]
) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...], list[str]]:
    """Return one label for each image as numbers (N,), the class names (or none) and notes.

    Labels that are names have the order of `classes`; without these, the sorted order.

    Raises:
        UhkdError: labels of several forms, not a single class each, or not among `classes`.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64), tuple(classes), []
    read = [label_of(value, f"item {i} of {title}") for i, value in enumerate(values)]
    form, labels = read[0][0], [label for _, label in read]
    if other := next((i for i, (found, _) in enumerate(read) if found != form), None):
        raise UhkdError(f"labels of {title} have several forms: {form} first, but {read[other][0]} at item {other}")
    if form == "names":
        names, order = [*map(str, labels)], "in the order of its class list" if classes else "sorted"
        classes = tuple(classes or sorted({*names}))
        note = f"labels of {title} are names: {len(classes)} classes, {order}"
        return number_names(names, title, classes), classes, [note]
    notes = [] if form == "integers" else [f"labels of {title} are {form}: read as class numbers"]
    return np.array(labels, dtype=np.int64), tuple(classes), notes


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the class names of a data set by its attributes classes or class_to_idx; or none."""
    names, index = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    index = names if isinstance(names, Mapping) else index
    if not isinstance(names, list | tuple | np.ndarray):
        names = sorted(index, key=index.__getitem__) if isinstance(index, Mapping) else ()
    return tuple(map(str, names))


def listed_labels(dataset: Any) -> tuple[Sequence[Any] | np.ndarray, tuple[str, ...]] | None:
    """Return the labels that a data set lists in an attribute, and its class names; None without such a list.

    Subsets, concatenations and other wrappers have the lists of the data sets in them.

    Raises:
        UhkdError: concatenated data sets with different classes.
    """
    if getattr(dataset, "target_transform", None) is not None or not hasattr(dataset, "__len__"):
        return None
    labels, names = next(_lists(dataset), None), class_names(dataset)
    listings = [listed_labels(part) for part in getattr(dataset, "datasets", ())]
    parts = [listing for listing in listings if listing is not None]
    inner = listed_labels(getattr(dataset, "dataset", None))
    if labels is None and parts and len(parts) == len(listings):  # torch.utils.data.ConcatDataset
        known = {names for _, names in parts if names}
        if len(known) > 1:
            different = "; ".join(map(listed, sorted(known)))
            raise UhkdError(
                f"the concatenated data sets have different classes ({different}), so that a number means several classes: "
                "map their labels to common numbers with target_transform"
            )
        labels, names = [label for part, _ in parts for label in part], names or next(iter(known), ())
    elif labels is None and inner is not None:
        labels, names = inner[0], names or inner[1]
        if hasattr(dataset, "indices"):  # torch.utils.data.Subset
            labels = [labels[int(i)] for i in dataset.indices]
    return None if labels is None or len(labels) != len(dataset) else (labels, names)


def _lists(dataset: Any) -> Iterator[Sequence[Any] | np.ndarray]:
    """Yield the attributes of a data set that may be its labels."""
    found = [getattr(dataset, name, None) for name in ("targets", "labels", "_labels", "y")]
    if isinstance(tensors := getattr(dataset, "tensors", None), tuple):  # torch.utils.data.TensorDataset
        found += tensors[1:2]
    if isinstance(pairs := getattr(dataset, "samples", None), list) and all(isinstance(pair, tuple) for pair in pairs):
        found.append([pair[-1] for pair in pairs])
    for values in found:
        values = values.cpu() if isinstance(values, Tensor) else values
        values = np.asarray(values) if hasattr(values, "__array__") else values  # also a column of pandas
        if isinstance(values, list | tuple | np.ndarray) and len(values) == len(dataset):
            yield values


def sampled(labels: Sequence[Any] | np.ndarray, count: int = 16) -> list[int]:
    """Return positions to compare with the items: some spread from the first to the last, and the first ones of some classes."""
    first: dict[str, int] = {}
    for position, label in enumerate(labels):
        first.setdefault(str(label), position)
    starts = [*first.values()]
    spread, chosen = (np.linspace(0, len(of) - 1, count).astype(int).tolist() for of in (labels, starts))
    return sorted({*spread, *(starts[i] for i in chosen)})
