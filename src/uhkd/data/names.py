"""Kinds of names of data: built in, tar shards, a reader of timm, or a path. Opens no files and does not import torch."""

import difflib
from pathlib import Path

from uhkd.errors import UhkdError

BUILT_IN = ("digits", "cifar100")
READERS = ("hfds/", "torch/")
TABLES = (".csv", ".tsv", ".parquet")
_PARTS = {"train": "train training", "val": "val valid validation dev", "test": "test testing eval evaluation"}
PARTS = {name: part for part, names in _PARTS.items() for name in names.split()}
"""Usual names of splits, in lower case, and the split that each means: train, val or test."""


def is_remote(name: str) -> bool:
    """Return whether a name is a URL."""
    return "://" in name


def is_reader(name: str) -> bool:
    """Return whether a name is that of a reader of timm, supported or not."""
    return name.startswith((*READERS, "tfds/", "hfids/"))


def may_download(name: str) -> bool:
    """Return whether opening data of this name may use the network: a URL, a data set of a hub, or a file of another machine."""
    return is_remote(name) or is_reader(name) or name.startswith(("//", "\\\\"))


def names_shards(name: str) -> bool:
    """Return whether a name alone means tar shards: wds/..., a URL, a .tar file or a {0..9} pattern of them."""
    return name.startswith("wds/") or is_remote(name) or name.endswith(".tar")


def check_data_name(name: str) -> None:
    """Check that a name which is a path exists.

    Raises:
        UhkdError: it does not; the message lists similar names.
    """
    if name in BUILT_IN or name.startswith("cifar100:") or names_shards(name) or is_reader(name):
        return
    path = Path(name).expanduser()
    if path.exists():
        return
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    missing = path.relative_to(parent).parts[0]
    try:
        present = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:  # the parent is not a folder or cannot be read
        present = []
    similar = [str(parent / name) for name in difflib.get_close_matches(missing, present, 3)]
    similar += difflib.get_close_matches(str(path), (*BUILT_IN, "torch/cifar10", "torch/mnist"), 2)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else f"; give a path, or one of: {', '.join(BUILT_IN)}"
    raise UhkdError(f"data {path} does not exist{hint}")
