"""Data from arrays: the digits, CIFAR-100, `.npz` files."""

import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uhkd.console import listed
from uhkd.data.sources import ArraySource, ImageSource, Split
from uhkd.data.splits import stratified_split
from uhkd.errors import UhkdError

_CIFAR_FOLDER = "cifar-100-python"


@dataclass(frozen=True)
class RawSplits:
    """The splits of a data set, before a validation split is cut from the training split.

    Attributes:
        classes: names of the classes; empty if the data has none.
        train, val, test: the images; val and test may be None.
        native_size: (H, W) if the images checked have one size, else None.
        notes: what was decided or skipped, to be logged.
        by_columns: whether images and labels are found by column.
    """

    classes: tuple[str, ...]
    train: ImageSource
    val: ImageSource | None
    test: ImageSource | None
    native_size: tuple[int, int] | None
    notes: tuple[str, ...] = ()
    by_columns: bool = False


def digits() -> RawSplits:
    """Return scikit-learn's 1,797 handwritten digits, 8x8; a fixed fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    source = ArraySource(images, np.asarray(bunch.target))
    assert source.labels is not None
    train, test = stratified_split(source.labels, 0.2, seed=0)
    return RawSplits(tuple("0123456789"), Split(source, train), None, Split(source, test), (8, 8))


def cifar100(root: Path | None) -> RawSplits:
    """Return CIFAR-100 in torchvision's files below `root` (None: ./data or the current folder); nothing is downloaded.

    Raises:
        UhkdError: no such folder, or damaged files.
    """
    from torchvision.datasets import CIFAR100

    roots = [Path("data"), Path()] if root is None else [root.parent if root.name == _CIFAR_FOLDER else root]
    root = next((path for path in roots if (path / _CIFAR_FOLDER).is_dir()), None)
    if root is None:
        expected = " or ".join(str(path / _CIFAR_FOLDER) for path in roots)
        raise UhkdError(
            f"CIFAR-100 not found: expected the folder {expected}; unpack the data set's python version and give "
            "cifar100:ROOT, where ROOT is the folder that contains cifar-100-python"
        )
    try:
        with warnings.catch_warnings():
            # the files were pickled by an old numpy, about which newer versions warn
            warnings.filterwarnings("ignore", message=".*align", category=Warning)
            train, test = (CIFAR100(str(root), train=split, download=False) for split in (True, False))
    except RuntimeError as error:
        raise UhkdError(
            f"CIFAR-100 in {root / _CIFAR_FOLDER} is incomplete or damaged (checksums differ): unpack it again"
        ) from error
    sources = [ArraySource(np.asarray(split.data), np.asarray(split.targets)) for split in (train, test)]
    return RawSplits(tuple(train.classes), sources[0], None, sources[1], (32, 32))


def npz(path: Path) -> RawSplits:
    """Return the arrays {train,val,test}_images, uint8 NHWC, and _labels, integers; val, test and `classes` are optional.

    Raises:
        UhkdError: not an archive of arrays, missing or unsuitable arrays, or more than fits into memory.
    """
    keys = ("classes", *(f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")))
    try:
        unpacked = _unpacked_size(path, keys)
        memory = memory_of_machine()
        # checked before any array is read: a few kilobytes can unpack to terabytes; twice, because arrays are copied once
        if memory is not None and 2 * unpacked > memory:
            raise UhkdError(
                f"{path} unpacks to {unpacked / 1e9:,.1f} GB, more than half of the {memory / 1e9:,.1f} GB of memory here: "
                "write the images as a folder of class folders"
            )
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            arrays = {key: archive[key] for key in keys if key in names}
    except UhkdError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's message about pickled objects recommends loading them
        reason = "it holds pickled objects" if "pickle" in str(error) else error
        reason = reason if zipfile.is_zipfile(path) else "it is no archive"
        raise UhkdError(
            f"{path} is not a readable .npz file of plain arrays ({reason}); write it with "
            "numpy.savez(file, train_images=..., train_labels=...)"
        ) from error
    missing = [key for key in ("train_images", "train_labels") if key not in arrays]
    if missing:
        present = listed(sorted(names)) or "none"
        raise UhkdError(
            f"{path} lacks {' and '.join(missing)}: expected train_images and train_labels, found {present}"
        )
    train, val, test = (_npz_split(path, arrays, split) for split in ("train", "val", "test"))
    assert train is not None
    classes = tuple(str(name) for name in arrays.get("classes", ()))
    height, width = train.images.shape[-2:]
    return RawSplits(classes, train, val, test, (height, width))


def _unpacked_size(path: Path, keys: Sequence[str]) -> int:
    """Return the bytes of the arrays `keys` by the archive's headers; no more than that is read of an entry."""
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist() if entry.filename.removesuffix(".npy") in keys)


def memory_of_machine() -> int | None:
    """Return the bytes of memory of the machine, or of its container if less; None where the system does not report it."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    with suppress(OSError, ValueError):  # "max" if there is no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return memory


def _npz_split(path: Path, arrays: dict[str, np.ndarray], split: str) -> ArraySource | None:
    images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
    if images is None or labels is None:
        if images is not None or labels is not None:
            raise UhkdError(f"{path} holds only one of {split}_images and {split}_labels: expected both or none")
        return None
    channels = images.shape[-1] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3) or 0 in images.shape:
        raise UhkdError(
            f"{path}: {split}_images must be uint8 of shape (N, height, width, 3) or (N, height, width, 1), "
            f"found {images.dtype} of shape {images.shape}"
        )
    labels = labels[:, 0] if labels.shape == (len(images), 1) else labels  # as MedMNIST has them
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UhkdError(
            f"{path}: {split}_labels must be integers of shape ({len(images)},), one for each image, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    return ArraySource(images, labels)
