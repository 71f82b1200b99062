"""The index of a set of tar shards: the position of each sample, stored as a file in their folder."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from uhkd.errors import UhkdError

INDEX = "uhkd-index.safetensors"
"""Name of the index file, which `uhkd index` writes to the folder of the shards."""
HEADER = 512  # bytes of a tar header, directly before the content of its member
_ARRAYS = {
    "sizes": np.int64,
    "bounds": np.int64,
    "offsets": np.int64,
    "lengths": np.int64,
    "headers": np.uint32,
    "keys": np.uint64,
    "labels": np.int64,
}
_OF_SAMPLES = tuple(_ARRAYS)[2:]
_SPLIT = re.compile(r"(?:^|[-_./])(train|val|valid|validation|eval|dev|test)(?=[-_./]|\d|$)", re.IGNORECASE)
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "val")


@dataclass(frozen=True)
class Index:
    """S shards with N samples, in order.

    Attributes:
        names: (S,) paths below the folder.
        classes: names of the labels if they are folders in the tars, else empty.
        sizes: (S,) bytes.
        bounds: (S+1,) shard s contains samples bounds[s]..bounds[s+1]-1.
        offsets, lengths: (N,) bytes of a sample's image in its shard.
        headers: (N,) checksums of the tar headers of the images.
        keys: (N,) uint64, hashes of the samples' names.
        labels: (N,), -1 without label.
        other_files: number of files by ending that are neither images nor labels, in all shards of the index file.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: np.ndarray
    bounds: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    headers: np.ndarray
    keys: np.ndarray
    labels: np.ndarray
    other_files: Counter[str] = field(default_factory=Counter)

    def of(self, shards: Sequence[int]) -> "Index":
        """Return the index of some of the shards."""
        counts = np.diff(self.bounds)[list(shards)]
        samples = np.concatenate([np.arange(self.bounds[s], self.bounds[s + 1]) for s in shards])
        return Index(
            tuple(self.names[s] for s in shards),
            self.classes,
            self.sizes[list(shards)],
            np.concatenate([[0], np.cumsum(counts)]),
            *(getattr(self, name)[samples] for name in _OF_SAMPLES),
            other_files=self.other_files,
        )

    def to_bytes(self) -> bytes:
        """Return the content of the index file: safetensors, with the names in its header."""
        names = {name: json.dumps(getattr(self, name)) for name in ("names", "classes", "other_files")}
        return save({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, metadata=names)


def read_index(content: bytes, title: str) -> Index:
    """Return the index of a file written by `to_bytes`; title: its name in messages.

    Raises:
        UhkdError: content of another kind, or damaged.
    """
    try:
        arrays = load(content)
        metadata: Any = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        index = Index(
            tuple(map(str, json.loads(metadata["names"]))),
            tuple(map(str, json.loads(metadata["classes"]))),
            *(arrays[name] for name in _ARRAYS),
            # files made before these were counted have none
            other_files=Counter(
                {str(ending): int(n) for ending, n in json.loads(metadata.get("other_files", "{}")).items()}
            ),
        )
        _check(index)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UhkdError(
            f"{title} is not an index of shards, or damaged ({error}): make it again with uhkd index"
        ) from error
    return index


def _check(index: Index) -> None:
    shards, samples = len(index.names), len(index.keys)
    shapes = dict.fromkeys(_ARRAYS, (samples,)) | {"sizes": (shards,), "bounds": (shards + 1,)}
    for name, kind in _ARRAYS.items():
        if (array := getattr(index, name)).shape != shapes[name] or array.dtype != kind:
            raise UhkdError("its arrays do not match each other")
    bounds = index.bounds
    if bounds[0] != 0 or bounds[-1] != samples or (bounds[1:] < bounds[:-1]).any():
        raise UhkdError("its bounds of shards are not rising")
    room = np.repeat(index.sizes, np.diff(bounds))
    if samples and ((index.offsets < HEADER) | (index.lengths < 0) | (index.lengths > room - index.offsets)).any():
        raise UhkdError("its samples are outside their shards")
    if samples and (index.labels.min() < -1 or (index.classes and index.labels.max() >= len(index.classes))):
        raise UhkdError("its labels do not match its classes")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in index.names):
        raise UhkdError("its shards are outside its folder")


def splits_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of the shards of each split (train, val, test) by their names; all are "train" if no name has a split.

    Raises:
        UhkdError: some names have a split and others none.
    """
    members: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        splits = _SPLIT.findall(name)
        members.setdefault(SPLITS[splits[-1].lower()] if splits else "", []).append(position)
    if "" in members and len(members) > 1:
        raise UhkdError(
            f"the name of shard {names[members[''][0]]} names no split, others do ({', '.join(filter(None, members))}): put "
            "train, val or test into each name, as in train-0000.tar"
        )
    return {split or "train": positions for split, positions in members.items()}
