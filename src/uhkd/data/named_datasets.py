"""Named data sets: `hfds/NAME[:FOLDER]` by the package datasets (Hugging Face), `torch/NAME[:FOLDER]` by timm's reader."""

from dataclasses import replace
from typing import Any

from uhkd.data.columns import Columns
from uhkd.data.datasets import RawSplits
from uhkd.data.names import READERS
from uhkd.data.user_datasets import by_name, user_dataset
from uhkd.errors import UhkdError

# torchvision has a training split and one more, whatever its name: it becomes the test split, on which nothing is selected
_SPLITS = {"hfds": {"val": ("validation", "valid", "val"), "test": ("test",)}, "torch": {"val": (), "test": ("test",)}}


def read_named(columns: Columns, labels: bool) -> RawSplits:
    """Open a data set by its name; `torch/` downloads nothing, `hfds/` what is not in its cache yet.

    FOLDER in the name is the folder of the data (torch/) or of the cache (hfds/). labels: whether labels are needed.

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
        opened = next((raw for title in titles if (raw := _open(columns, name, root, title, labels))), None)
        if opened is None:
            continue
        if opened.train.labels is not None and opened.train.labels.max(initial=-1) < 0:
            notes.append(f"split {split} has no labels (those of some test splits are not published): left out")
            continue
        others[split], added = by_name(opened.train, opened.classes, train.classes, f"split {split} of {spec}")
        notes += added
    return replace(train, **others, notes=tuple(notes))


def _open(columns: Columns, name: str, root: str, split: str, labels: bool) -> RawSplits | None:
    """Return one split; None if the data set has none of that name."""
    spec = columns.data
    try:
        if name.startswith("hfds/"):
            import datasets

            dataset: Any = datasets.load_dataset(name.removeprefix("hfds/"), split=split, cache_dir=root or None)
        else:
            from timm.data import create_dataset

            dataset = create_dataset(name, root=root or None, split=split, download=False)
    except ImportError as error:
        raise UhkdError(f"data {spec} needs the package datasets ({error}): pip install 'uhkd[hf]'") from error
    except Exception as error:  # each library raises its own errors
        if split != "train" and isinstance(error, ValueError | KeyError | AssertionError):
            return None
        raise UhkdError(
            f"data {spec} cannot be opened ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    return user_dataset(replace(columns, data=dataset), f"{spec}, split {split}", labels)
