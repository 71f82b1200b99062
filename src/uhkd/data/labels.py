"""Labels of any usual form as class numbers; lists of labels beside the items of a data set."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from uhkd.console import listed
from uhkd.errors import UhkdError

_SPREAD = 16  # positions, and as many classes, at which a list of labels is compared with the items


class Listing(NamedTuple):
    """The labels of a data set as it lists them, one for each item, and its class names (or none)."""

    labels: Sequence[Any] | np.ndarray
    names: tuple[str, ...]

    def positions(self) -> list[int]:
        """Return positions spread over the whole data set, the first and last and some of each class among them."""
        first: dict[Any, int] = {}
        for position, label in enumerate(self.labels):
            first.setdefault(label if isinstance(label, int | str | np.integer) else None, position)
        starts = np.array([*first.values()])
        spread = np.linspace(0, len(self.labels) - 1, _SPREAD).astype(int)
        return sorted({*spread.tolist(), *starts[np.linspace(0, len(starts) - 1, _SPREAD).astype(int)].tolist()})


def label_of(value: Any, where: str) -> tuple[str, int | str]:
    """Return the form of a label ("integers", "floats", "names" or "one-hot") and its class: a number or a name.

    Args:
        value: integer, whole float, text or one-hot vector; a tensor, array or plain value.
        where: the item's name in messages.

    Raises:
        UhkdError: no label, or one that is not a single class.
    """
    if type(value) is int:
        return "integers", value
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        raise UhkdError(f"{where} has a dict of {keys} as its label, as for detection: expected one class")
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    kind, found = array.dtype.kind, f"{type(value).__name__} of shape {array.shape}"
    if (
        value is None
        or (kind == "U" and array.size == 1 and not str(array).strip())
        or (kind == "f" and np.isnan(array).any())
    ):
        raise UhkdError(f"{where} has no label ({value!r}): remove it, or ignore all labels with --unlabelled")
    if array.size == 1 and kind in "iubU":
        return ("names", str(array.item())) if kind == "U" else ("integers", int(array.item()))
    if array.size == 1 and kind == "f":
        if not float(array.item()).is_integer():
            raise UhkdError(
                f"{where} has the label {array.item():g}: expected a class; measured values are not supported"
            )
        return "floats", int(array.item())
    if array.ndim == 1 and kind in "iubf" and np.isin(array, (0, 1)).all() and array.sum() == 1:
        return "one-hot", int(array.argmax())
    if array.ndim == 1 and kind == "f" and array.min() >= 0 and abs(array.sum() - 1) < 1e-3:
        raise UhkdError(f"{where} has probabilities of {len(array)} classes as its label: expected one class")
    if array.ndim == 1 and kind in "iubfU":
        raise UhkdError(
            f"{where} has several labels or none ({found}): multi-label data is not supported, expected one class for each image"
        )
    raise UhkdError(f"{where} has a {found} as its label: expected an integer, a class name or a one-hot vector")


def class_numbers(
    values: Sequence[Any] | np.ndarray, title: str, names: Sequence[str] = ()
) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...], list[str]]:
    """Convert labels, one for each image, to class numbers (N,); return them with the class names (or none) and notes.

    Names are numbered in the order of `names`; without these, in sorted order.

    Raises:
        UhkdError: labels of several forms, not a single class, or not among `names`.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64), tuple(names), []
    forms, labels = zip(*(label_of(value, f"item {i} of {title}") for i, value in enumerate(values)), strict=True)
    form = forms[0]
    if (other := next((i for i, found in enumerate(forms) if found != form), None)) is not None:
        raise UhkdError(f"labels of {title} have several forms: {form}, and from item {other} on {forms[other]}")
    if form == "names":
        names = tuple(names or sorted(set(labels)))
        if unknown := sorted(set(labels) - set(names)):
            raise UhkdError(
                f"labels of {title} that are not among its classes: {listed(unknown)}; its classes: {listed(names)}"
            )
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[name] for name in labels]), names, [f"labels of {title} are {len(names)} names"]
    notes = [] if form == "integers" else [f"labels of {title} are {form}: read as class numbers"]
    return np.array(labels, dtype=np.int64), tuple(names), notes


def listed_labels(dataset: Any) -> Listing | None:
    """Return the labels that a data set lists in an attribute, also through subsets, concatenations and wrappers; or None.

    Raises:
        UhkdError: concatenated data sets with different class lists.
    """
    if getattr(dataset, "target_transform", None) is not None or not hasattr(dataset, "__len__"):
        return None
    names = class_names(dataset)
    for values in _attributes(dataset):
        if len(values) == len(dataset):
            return Listing(values, names)
    if hasattr(dataset, "cumulative_sizes"):  # torch.utils.data.ConcatDataset
        parts = [listed_labels(part) for part in dataset.datasets]
        if other := next((part.names for part in parts if part and parts[0] and part.names != parts[0].names), None):
            raise UhkdError(
                f"the concatenated data sets have different classes ({listed(parts[0].names)}; {listed(other)}), so one number "
                "means several classes: give their labels a common numbering (target_transform)"
            )
        return None if None in parts else Listing([x for part in parts for x in part.labels], names or parts[0].names)
    inner = listed_labels(getattr(dataset, "dataset", None))
    if inner is None:
        return None
    labels = inner.labels
    if hasattr(dataset, "indices"):  # torch.utils.data.Subset
        positions = np.asarray(dataset.indices)
        labels = labels[positions] if isinstance(labels, np.ndarray) else [labels[i] for i in positions.tolist()]
    return Listing(labels, names or inner.names) if len(labels) == len(dataset) else None


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the class names of a data set by its `classes`, a list or {name: number}, or its `class_to_idx`; or none."""
    names = getattr(dataset, "classes", None)
    index = names if isinstance(names, Mapping) else getattr(dataset, "class_to_idx", None)
    if isinstance(names, list | tuple | np.ndarray):
        return tuple(map(str, names))
    if isinstance(index, Mapping) and set(index.values()) == set(range(len(index))):
        return tuple(str(name) for name in sorted(index, key=index.__getitem__))
    return ()


def _attributes(dataset: Any) -> Iterator[Any]:
    """Yield the lists that may hold the labels."""
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, name, None)
        if isinstance(values, Tensor):
            yield values.cpu().numpy()
        elif hasattr(values, "__array__"):  # also a column of pandas
            yield np.asarray(values)
        elif isinstance(values, list | tuple):
            yield values
    tensors = getattr(dataset, "tensors", ())  # torch.utils.data.TensorDataset
    if isinstance(tensors, tuple) and len(tensors) > 1:
        yield tensors[1].cpu().numpy()
    for name in ("samples", "imgs"):
        values = getattr(dataset, name, None)
        if isinstance(values, list | tuple) and values and isinstance(values[0], list | tuple) and len(values[0]) == 2:
            yield [label for _, label in values]
