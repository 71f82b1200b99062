"""Data by timm's readers: `hfds/NAME[:FOLDER]` (Hugging Face, package datasets) and `torch/NAME[:FOLDER]` (torchvision)."""

from dataclasses import replace
from typing import Any

from uhkd.data.columns import Columns, feature_columns
from uhkd.data.datasets import RawSplits
from uhkd.data.labels import class_numbers
from uhkd.data.names import READERS
from uhkd.data.sources import DatasetSource
from uhkd.data.user_datasets import by_name, user_dataset
from uhkd.errors import UhkdError

# torchvision has a training split and one more, whatever its name: it becomes the test split, on which nothing is selected
_SPLITS = {"hfds": {"val": ("validation", "valid", "val"), "test": ("test",)}, "torch": {"val": (), "test": ("test",)}}


def read_timm(columns: Columns, labels: bool = True) -> RawSplits:
    """Open a data set by timm's name of it; `torch/` downloads nothing, `hfds/` what is not in its cache yet.

    Args:
        columns: the name, and the columns of a data set of Hugging Face. FOLDER in the name is the folder of the data
            (torch/) or of the cache (hfds/).
        labels: whether labels are needed.

    Raises:
        UhkdError: an iterable reader, a package that is not installed, or a data set that cannot be opened or has no labels.
    """
    spec = str(columns.data)
    if not spec.startswith(READERS):
        kind = spec.partition("/")[0]
        raise UhkdError(
            f"data {spec}: timm's reader {kind}/ only streams images in a fixed order, which can be neither shuffled nor resumed "
            "exactly; use hfds/, torch/, or tar shards (wds/FOLDER or a URL: docs/scaling.md)"
        )
    name, _, root = spec.partition(":")
    train = _open(columns, name, root, "train", labels)
    if train is None:
        raise UhkdError(f"data {spec} has no split named train")
    notes, others = [*train.notes], {}
    for split, titles in _SPLITS[name.partition("/")[0]].items():
        opened = next((found for title in titles if (found := _open(columns, name, root, title, labels))), None)
        if opened is None:
            continue
        if opened.train.labels is not None and opened.train.labels.max(initial=-1) < 0:
            notes.append(f"split {split} has no labels (those of some test splits are not published): left out")
            continue
        others[split], added = by_name(opened.train, opened.classes, train.classes, f"split {split} of {spec}")
        notes += added
    return replace(train, notes=tuple(notes), **others)


def _open(columns: Columns, name: str, root: str, split: str, labels: bool) -> RawSplits | None:
    """Return one split; None if the data set has none of that name."""
    from timm.data import create_dataset

    spec, found = columns.data, {}
    try:
        if name.startswith("hfds/"):
            import datasets

            # timm's reader asks for the columns before it has opened the data set
            table = datasets.load_dataset(name.partition("/")[2], split=split, cache_dir=root or None)
            image, label = feature_columns(columns, table.features, f"data {spec}", labels)
            found = {"input_key": image, "target_key": label or image}
        dataset: Any = create_dataset(name, root=root or None, split=split, download=False, **found)
    except UhkdError:
        raise
    except ImportError as error:
        raise UhkdError(f"data {spec} needs the package datasets ({error}): pip install 'uhkd[hf]'") from error
    except Exception as error:  # each library raises its own errors
        if split != "train" and isinstance(error, ValueError | KeyError | AssertionError):
            return None
        raise UhkdError(
            f"data {spec} cannot be opened ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    if not found:
        return user_dataset(replace(columns, data=dataset), spec, labels)
    names, notes, numbers = (
        (),
        [f"{spec}, split {split}: images from column {image}, labels from {label or 'none'}"],
        None,
    )
    if label is not None:
        values = table[label][:]
        names = tuple(getattr(table.features[label], "names", None) or ())
        unlabelled = all(value is None for value in values)
        numbers, names, added = class_numbers([-1] * len(values) if unlabelled else values, spec, names)
        notes += added
    source = DatasetSource(dataset, numbers, spec)
    first = source.image(0)
    return RawSplits(names, source, None, None, (first.shape[1], first.shape[2]), tuple(notes), by_columns=True)
