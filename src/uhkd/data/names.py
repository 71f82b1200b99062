"""What a word for data is: built in, tar shards, one of timm's readers, or else a path; nothing is opened, nor torch imported."""

import difflib
from pathlib import Path

from uhkd.errors import UhkdError

BUILT_IN = ("digits", "cifar100")
READERS = ("hfds/", "torch/")


def is_remote(name: str) -> bool:
    """Whether a word for data is an address."""
    return "://" in name


def is_reader(name: str) -> bool:
    """Whether a word for data is one of timm's, whether it is read here or not."""
    return name.startswith((*READERS, "tfds/", "hfids/"))


def names_shards(name: str) -> bool:
    """Whether a word for data means tar shards whatever lies there: wds/..., a .tar, a {0..9} pattern of them, or elsewhere."""
    return name.startswith("wds/") or is_remote(name) or name.endswith(".tar")


def check_data_name(name: str) -> None:
    """See that a word for data is none of a path where nothing lies.

    Raises:
        UhkdError: when it is, with names that are near.
    """
    if name in BUILT_IN or name.startswith("cifar100:") or names_shards(name) or is_reader(name):
        return
    path = Path(name).expanduser()
    if path.exists():
        return
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    wanted = path.relative_to(parent).parts[0]
    try:
        present = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:  # an unreadable or non-folder parent has no names to offer
        present = []
    near = [str(parent / name) for name in difflib.get_close_matches(wanted, present, 3)]
    near += difflib.get_close_matches(str(path), BUILT_IN, 1)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; give a path, or one of: {', '.join(BUILT_IN)}"
    raise UhkdError(f"data {path} does not exist{hint}")
