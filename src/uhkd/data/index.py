"""Where each sample of a set of tar shards lies: read from the tars' headers, or from a file that keeps it."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from uhkd.data.decode import EXTENSIONS
from uhkd.text import shown

INDEX = "uhkd-index.safetensors"  # beside the shards, by `uhkd index`
_LONGEST = 2**20  # bytes of a label's member: a class number has a few, a JSON description some hundreds
HEADER = 512  # bytes of a tar's header, right before what it describes
_ARRAYS = ("sizes", "bounds", "offsets", "lengths", "headers", "keys", "labels")


@dataclass(frozen=True)
class Index:
    """S shards with N samples, in their order.

    names: (S,) below their folder. sizes: (S,) bytes. bounds: (S+1,) samples of shard s are bounds[s] up to bounds[s+1].
    offsets, lengths: (N,) where a sample's image lies in its shard. headers: (N,) checksums of the tar's headers of the
    images. keys: (N,) uint64, of the samples' names. labels: (N,), -1 where none; classes: names of the labels where folders
    in the tars give them, else empty.
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

    def of(self, shards: Sequence[int]) -> Index:
        """The index of some of the shards."""
        counts = np.diff(self.bounds)[list(shards)]
        samples = np.concatenate([np.arange(self.bounds[s], self.bounds[s + 1]) for s in shards])
        return Index(
            tuple(self.names[s] for s in shards),
            self.classes,
            self.sizes[list(shards)],
            np.concatenate([[0], np.cumsum(counts)]),
            *(getattr(self, name)[samples] for name in _ARRAYS[2:]),
        )

    def to_bytes(self) -> bytes:
        """As a file: safetensors, with the names in its header."""
        names = {"names": json.dumps(self.names), "classes": json.dumps(self.classes)}
        return save({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, metadata=names)


def read_index(content: bytes, title: str) -> Index:
    """The index that `to_bytes` made.

    Raises:
        ValueError: when it is anything else; title: what it is called in the message.
    """
    try:
        arrays = load(content)
        words: Any = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found = Index(
            tuple(map(str, json.loads(words["names"]))),
            tuple(map(str, json.loads(words["classes"]))),
            *(arrays[name] for name in _ARRAYS),
        )
        _check(found)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{title} is no index of shards, or damaged ({error}): make it anew with uhkd index"
        ) from error
    return found


def _check(index: Index) -> None:
    shards, samples = len(index.names), len(index.keys)
    lengths = {name: getattr(index, name).shape for name in _ARRAYS}
    wanted = dict.fromkeys(_ARRAYS, (samples,)) | {"sizes": (shards,), "bounds": (shards + 1,)}
    if lengths != wanted or any(getattr(index, name).dtype.kind not in "iu" for name in _ARRAYS):
        raise ValueError("its parts do not fit each other")
    bounds, counts = index.bounds, np.diff(index.bounds)
    if bounds[0] != 0 or bounds[-1] != samples or (counts < 0).any():
        raise ValueError("its shards' bounds are not rising")
    room = np.repeat(index.sizes, counts)
    if samples and (
        index.offsets.min() < HEADER or index.lengths.min() < 0 or (index.offsets + index.lengths > room).any()
    ):
        raise ValueError("its samples lie outside of their shards")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in index.names):
        raise ValueError("its shards lie outside of its folder")


class _Sample(NamedTuple):
    key: str
    offset: int
    length: int
    header: int
    label: int | None
    folder: str


def make_index(folder: Path, names: Sequence[str]) -> Index:
    """Read the headers of the tar files `names` in `folder`; images are not read.

    A sample is what lies side by side under one name (WebDataset): an image and, if any, its class as a number in NAME.cls, or
    as "label" or "cls" in NAME.json. Without those the folder of the image in the tar is its class.

    Raises:
        ValueError: no tar, compressed, cut short, without images, with labels in some samples only, or two samples of a name.
    """
    samples: list[_Sample] = []
    counts, sizes = [], []
    for name in names:
        path = folder / name
        found = list(_samples(path))
        samples += found
        counts.append(len(found))
        sizes.append(path.stat().st_size)
    title = shown(f"{folder / names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    if not samples:
        raise ValueError(
            f"no images in {title}: expected tar files of images, NAME.jpg beside NAME.cls or in class folders"
        )
    labels, classes = _labels(samples, title)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Index(
        tuple(names),
        classes,
        np.array(sizes, np.int64),
        bounds,
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.length for sample in samples], np.int64),
        np.array([sample.header for sample in samples], np.uint32),
        _keys([sample.key for sample in samples], names, bounds),
        labels,
    )


def _samples(path: Path) -> Iterator[_Sample]:
    size = path.stat().st_size
    open_samples: dict[str, Any] = {}
    try:
        # "r:" reads plain tars alone: bytes in a compressed one have no place of their own
        with tarfile.open(path, "r:") as archive:
            key = None
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (it would keep every header)
                if not member.isreg() or member.issparse() or _hidden(member.name):
                    continue
                if member.offset_data + member.size > size:
                    raise ValueError(
                        f"shard {shown(str(path))} is cut short: its headers promise more bytes than its {size:,}"
                    )
                stem, extension = _split(member.name)
                if stem != key:
                    yield from _finished(key, open_samples)
                    key, open_samples = stem, {}
                if extension.rpartition(".")[2] in EXTENSIONS and "image" not in open_samples:
                    open_samples |= {"image": member, "header": _header(archive, member)}
                elif extension in ("cls", "json"):
                    open_samples[extension] = _label(archive, member, extension, path)
            yield from _finished(key, open_samples)
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise ValueError(
            f"{shown(str(path))} cannot be read as a tar file ({error}): expected a plain one, not compressed"
        ) from error


def _finished(key: str | None, parts: dict[str, Any]) -> Iterator[_Sample]:
    if key is not None and "image" in parts:
        image = parts["image"]
        label = parts.get("cls", parts.get("json"))
        yield _Sample(
            key,
            image.offset_data,
            image.size,
            parts["header"],
            label,
            key.rpartition("/")[0].rpartition("/")[2].strip("."),
        )


def _header(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = archive.fileobj
    assert file is not None
    after = file.tell()
    file.seek(member.offset_data - HEADER)
    found = zlib.crc32(file.read(HEADER))
    file.seek(after)
    return found


def _split(name: str) -> tuple[str, str]:
    """Name and extension, which begins at the first dot of the last part (WebDataset)."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") or "__MACOSX" in name


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, path: Path) -> int | None:
    title = f"{shown(member.name)} in {shown(str(path))}"
    if member.size > _LONGEST:
        raise ValueError(
            f"{title} has {member.size:,} bytes: expected a class, or a JSON description of up to {_LONGEST:,}"
        )
    file = archive.extractfile(member)
    assert file is not None
    text = file.read().decode("utf-8", "replace").strip()
    if kind == "json":
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{title} is no JSON: expected a description with a label") from None
        found = said.get("label", said.get("cls")) if isinstance(said, dict) else None
        return found if isinstance(found, int) and not isinstance(found, bool) else None
    if not text.removeprefix("-").isdecimal() or len(text) > 12:
        raise ValueError(f"{title} is {shown(text[:40])!r}: expected the number of a class, from 0")
    return int(text)


def _labels(samples: list[_Sample], title: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels by numbers, else by folders, else -1."""
    numbers = [sample.label for sample in samples]
    if any(number is not None for number in numbers):
        if missing := [shown(sample.key) for sample in samples if sample.label is None]:
            raise ValueError(
                f"{len(missing)} samples of {title} have no class (.cls or .json), others have: {missing[0]}, ..."
            )
        return np.array(numbers, np.int64), ()
    folders = sorted({sample.folder for sample in samples})
    if len(folders) < 2 or "" in folders:
        return np.full(len(samples), -1, np.int64), ()
    places = {name: place for place, name in enumerate(folders)}
    return np.array([places[sample.folder] for sample in samples], np.int64), tuple(folders)


def _keys(stems: list[str], names: Sequence[str], bounds: np.ndarray) -> np.ndarray:
    """Of the samples' names alone; where one is in two shards, with that of its shard, so that each has a key of its own."""
    if len(set(stems)) != len(stems):
        stems = [f"{names[s]}/{stem}" for s in range(len(names)) for stem in stems[bounds[s] : bounds[s + 1]]]
    if len(set(stems)) != len(stems):
        seen: set[str] = set()
        twice = next(stem for stem in stems if stem in seen or seen.add(stem))
        raise ValueError(
            f"two samples of one shard have the name {shown(twice)}: members of a sample must lie side by side"
        )
    digests = (hashlib.blake2b(stem.encode("utf-8", "surrogateescape"), digest_size=8).digest() for stem in stems)
    return np.frombuffer(b"".join(digests), "<u8").copy()
