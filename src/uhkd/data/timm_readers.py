"""Data by timm's readers: `hfds/NAME[:FOLDER]` (Hugging Face, package datasets) and `torch/NAME[:FOLDER]` (torchvision)."""

from __future__ import annotations

from typing import Any

import numpy as np

from uhkd.data.datasets import RawSplits, user_dataset
from uhkd.data.names import READERS
from uhkd.data.sources import DatasetSource
from uhkd.errors import UhkdError

# torchvision has a training part and one more, whatever its name: it becomes the test part, on which nothing is selected
_PARTS = {"hfds": {"val": ("validation", "valid", "val"), "test": ("test",)}, "torch": {"val": (), "test": ("test",)}}


def read_timm(spec: str) -> RawSplits:
    """Open a data set by timm's name of it; `torch/` downloads nothing, `hfds/` what is not in its cache yet.

    FOLDER in `spec` is the folder of the data (torch/) or of the cache (hfds/).

    Raises:
        UhkdError: an iterable reader, a package that is not installed, or a data set that cannot be opened or has no labels.
    """
    if not spec.startswith(READERS):
        kind = spec.partition("/")[0]
        raise UhkdError(
            f"data {spec}: timm's reader {kind}/ only streams images in a fixed order, which can be neither shuffled nor resumed "
            "exactly; use hfds/, torch/, or tar shards (wds/FOLDER or a URL: docs/scaling.md)"
        )
    name, _, root = spec.partition(":")
    train = _open(spec, name, root, "train")
    if train is None:
        raise UhkdError(f"data {spec} has no split named train")
    others = {
        part: next((opened.train for split in splits if (opened := _open(spec, name, root, split))), None)
        for part, splits in _PARTS[name.partition("/")[0]].items()
    }
    notes = list(train.notes)
    for part, source in others.items():
        if source is not None and source.labels is not None and source.labels.max(initial=-1) < 0:
            others[part] = None
            notes.append(f"part {part} has no labels (those of some test parts are not published): left out")
    return RawSplits(train.classes, train.train, others["val"], others["test"], train.native_size, tuple(notes))


def _open(spec: str, name: str, root: str, split: str) -> RawSplits | None:
    """Return one part; None if the data set has none of that name."""
    from timm.data import create_dataset

    try:
        dataset: Any = create_dataset(name, root=root or None, split=split, download=False)
    except ImportError as error:
        raise UhkdError(f"data {spec} needs the package datasets ({error}): pip install 'uhkd[hf]'") from error
    except Exception as error:  # each library raises its own errors
        if split != "train" and isinstance(error, ValueError | KeyError | AssertionError):
            return None
        raise UhkdError(
            f"data {spec} cannot be opened ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return user_dataset(dataset, spec)
    column = reader.dataset.features.get(reader.label_key)
    source = DatasetSource(dataset, np.asarray(reader.dataset[reader.label_key][:], np.int64), spec)
    first = source.image(0)
    return RawSplits(
        tuple(getattr(column, "names", ()) or ()), source, None, None, (first.shape[1], first.shape[2]), ()
    )
