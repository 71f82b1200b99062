"""The headers of tar shards -> an index of their samples; images are not read, and nothing is unpacked."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uhkd.console import escape
from uhkd.data.decode import EXTENSIONS
from uhkd.data.tar_index import HEADER, PARTS, Index, parts_of
from uhkd.errors import UhkdError

_LONGEST = 2**20  # bytes of a label's member: a class number has a few, a JSON description some hundreds
_DIGITS = 12  # of a class number


class _Sample(NamedTuple):
    key: str
    offset: int
    length: int
    header: int
    label: int | None

    @property
    def folder(self) -> str:
        """The folder in the tar that it lies in, without those above."""
        return self.key.rpartition("/")[0].rpartition("/")[2].strip(".")


def make_index(folder: Path, names: Sequence[str]) -> Index:
    """Read the headers of the tar files `names` in `folder`.

    A sample is what lies side by side under one name, up to its first dot (WebDataset): one image, NAME.jpg, and if any its
    class, as a number in NAME.cls or as "label" or "cls" in NAME.json. Where no sample of a tar has those, the folder of the
    image in the tar is its class, and further dots belong to the name.

    Raises:
        UhkdError: no tar, compressed, cut short or damaged, without images, with labels in some samples only, two images of a
            sample, two samples of a name, or several parts in one set of tars.
    """
    samples: list[_Sample] = []
    counts, sizes = [], []
    for name in names:
        path = folder / name
        found = list(_samples(path))
        samples += found
        counts.append(len(found))
        sizes.append(path.stat().st_size)
    title = escape(f"{folder / names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    if not samples:
        raise UhkdError(
            f"no images in {title}: expected tar files of images, NAME.jpg beside NAME.cls or in class folders"
        )
    tops = {sample.key.removeprefix("./").partition("/")[0].lower() for sample in samples}
    if len(inside := {PARTS[top] for top in tops if top in PARTS}) > 1:
        raise UhkdError(
            f"{title} holds {' and '.join(sorted(inside))} in one: expected tars of each part, as train-0000.tar"
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


@dataclass
class _Group:
    """What lies side by side under one name."""

    key: str
    images: list[tuple[str, int, int, int]] = field(default_factory=list)  # extension, offset, length, header
    labels: dict[str, int | None] = field(default_factory=dict)

    def samples(self, path: Path) -> Iterator[_Sample]:
        """The sample, or the images by themselves where their names have further dots."""
        plain = [image for image in self.images if "." not in image[0]]
        label = self.labels.get("cls", self.labels.get("json"))
        title = f"{escape(self.key)} in {escape(str(path))}"
        names = ", ".join(escape(image[0]) for image in self.images)
        if (
            len(plain) > 1
            or (self.labels and self.images and not plain)
            or (plain and plain != self.images and not self.labels)
        ):
            raise UhkdError(
                f"the image of sample {title} is not clear ({names}): expected one NAME.jpg, others as NAME.kind.png beside a "
                "NAME.cls; a name ends at its first dot"
            )
        for extension, offset, length, header in plain or self.images:
            inner = extension.rpartition(".")[0]
            yield _Sample(f"{self.key}.{inner}" if inner else self.key, offset, length, header, label)


def _samples(path: Path) -> Iterator[_Sample]:
    size = path.stat().st_size
    try:
        # "r:" reads plain tars alone: bytes in a compressed one have no place of their own
        with tarfile.open(path, "r:") as archive:
            group = _Group("")
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (it would keep every header)
                if not member.isreg() or member.issparse() or _hidden(member.name):
                    continue
                if member.offset_data + member.size > size:
                    raise UhkdError(
                        f"shard {escape(str(path))} is cut short: its headers promise more bytes than its {size:,}"
                    )
                stem, extension = _split(member.name)
                if stem != group.key:
                    yield from group.samples(path)
                    group = _Group(stem)
                kind = extension.rpartition(".")[2]
                if kind in EXTENSIONS:
                    header = zlib.crc32(_bytes(archive, member.offset_data - HEADER, HEADER))
                    group.images.append((extension, member.offset_data, member.size, header))
                elif extension in ("cls", "json"):
                    group.labels[extension] = _label(archive, member, extension, path)
                elif kind == "cls":
                    raise UhkdError(
                        f"{escape(member.name)} in {escape(str(path))}: a sample's name ends at its first dot, so this is the "
                        "class of none: name it NAME.cls"
                    )
            yield from group.samples(path)
            # tarfile takes whatever it cannot read, but for the first header, for the end
            if any(_bytes(archive, archive.offset, size - archive.offset)):
                raise UhkdError(
                    f"shard {escape(str(path))} is damaged at byte {archive.offset:,}, or another tar begins there: make it anew"
                )
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise UhkdError(
            f"{escape(str(path))} cannot be read as a tar file ({error}): expected a plain one, not compressed"
        ) from error


def _bytes(archive: tarfile.TarFile, offset: int, count: int) -> bytes:
    file = archive.fileobj
    assert file is not None
    after = file.tell()
    file.seek(offset)
    found = file.read(count)
    file.seek(after)
    return found


def _split(name: str) -> tuple[str, str]:
    """Name and extension, which begins at the first dot of the last part."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") or "__MACOSX" in name


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, path: Path) -> int | None:
    title = f"{escape(member.name)} in {escape(str(path))}"
    if member.size > _LONGEST:
        raise UhkdError(
            f"{title} has {member.size:,} bytes: expected a class, or a JSON description of up to {_LONGEST:,}"
        )
    text = _bytes(archive, member.offset_data, member.size).decode("utf-8", "replace").strip()
    if kind == "json":
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError):
            raise UhkdError(f"{title} is no JSON: expected a description with a label") from None
        found = metadata.get("label", metadata.get("cls")) if isinstance(metadata, dict) else None
        if found is None:
            return None
        # an empty text stands for what is no number
        text = str(found) if isinstance(found, int | str) and not isinstance(found, bool) else ""
    if not (text == "-1" or (text.isdecimal() and len(text) <= _DIGITS)):  # -1: not known, as in test parts
        raise UhkdError(f"{title} is {escape(text[:40])!r}: expected the number of a class, from 0")
    return int(text)


def _labels(samples: list[_Sample], title: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels by numbers, else by folders, else -1."""
    numbers = [sample.label for sample in samples]
    if any(number is not None for number in numbers):
        if missing := [escape(sample.key) for sample in samples if sample.label is None]:
            raise UhkdError(
                f"{len(missing)} samples of {title} have no class (.cls or .json), others have: {missing[0]}, ..."
            )
        return np.array(numbers, np.int64), ()
    folders = sorted({sample.folder for sample in samples})
    if len(folders) < 2:
        return np.full(len(samples), -1, np.int64), ()
    if "" in folders:
        stray = next(sample.key for sample in samples if not sample.folder)
        raise UhkdError(
            f"{escape(stray)} of {title} lies outside of the class folders ({', '.join(map(escape, folders[1:9]))})"
        )
    places = {name: place for place, name in enumerate(folders)}
    return np.array([places[sample.folder] for sample in samples], np.int64), tuple(folders)


def _keys(stems: list[str], names: Sequence[str], bounds: np.ndarray) -> np.ndarray:
    """Of the samples' names alone; those that are in two shards of a part count with that of their shard."""
    for shards in parts_of(names).values():
        places = [i for s in shards for i in range(bounds[s], bounds[s + 1])]
        often = Counter(stems[i] for i in places)
        for s in shards:
            inside: set[str] = set()
            for i in range(bounds[s], bounds[s + 1]):
                stem = stems[i]
                if stem in inside:
                    raise UhkdError(
                        f"two samples of one shard have the name {escape(f'{names[s]}/{stem}')}: members of a sample must lie "
                        "side by side"
                    )
                inside.add(stem)
                if often[stem] > 1:
                    stems[i] = f"{names[s]}/{stem}"
    digests = (hashlib.blake2b(stem.encode("utf-8", "surrogateescape"), digest_size=8).digest() for stem in stems)
    return np.frombuffer(b"".join(digests), "<u8").copy()


def refuse_packed(path: Path) -> None:
    """Refuse tar files that are compressed: their records cannot be read by position.

    Raises:
        UhkdError: for such a file, or a folder that holds nothing else.
    """
    try:
        files = [path] if path.is_file() else [file for file in path.iterdir() if not file.name.startswith(".")]
    except OSError:  # whoever reads it says what is wrong
        return
    packed = [file.name for file in files if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", file.name.lower())]
    if packed and len(packed) == len(files):
        raise UhkdError(
            f"{escape(str(path))} is compressed ({escape(min(packed))}): images are read by position, "
            "from .tar files as they are; unpack them, to .tar or to folders of classes"
        )
