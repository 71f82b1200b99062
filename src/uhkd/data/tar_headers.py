"""Make the index of tar shards from their headers; images are not read, and nothing is unpacked."""

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

from uhkd.console import escape, listed
from uhkd.data.formats import ending_of, endings
from uhkd.data.tar_index import HEADER, SPLITS, Index, splits_of
from uhkd.errors import UhkdError

_MAX_LABEL_BYTES = 2**20  # a class number has a few bytes, a JSON description some hundreds
_DIGITS = 12  # of a class number


class _Sample(NamedTuple):
    key: str
    offset: int
    length: int
    header: int
    label: int | None

    @property
    def folder(self) -> str:
        """Name of its folder in the tar, without the parents."""
        return self.key.rpartition("/")[0].rpartition("/")[2].strip(".")


def make_index(folder: Path, names: Sequence[str]) -> Index:
    """Return the index of the tar files `names` in `folder`.

    A sample is the adjacent members with one name up to its first dot (WebDataset): one image, NAME.jpg, and optionally its
    class, as a number in NAME.cls or as "label" or "cls" in NAME.json. If no sample of a tar has those, the folder of the
    image in the tar is its class, and further dots belong to the name. Other files are counted by ending.

    Raises:
        UhkdError: not a tar, compressed, cut short or damaged, without images, labels in some samples only, two images of one
            sample, two samples with one name, or several splits in one set of tars.
    """
    other_files: Counter[str] = Counter()
    shards = [list(_samples(folder / name, other_files)) for name in names]
    samples = [sample for shard in shards for sample in shard]
    title = listed([folder / name for name in names], 1)
    if not samples:
        raise UhkdError(
            f"no images in {title}: expected tar files of images, NAME.jpg with NAME.cls or in class folders"
        )
    tops = {sample.key.removeprefix("./").partition("/")[0].lower() for sample in samples}
    if len(splits := {SPLITS[top] for top in tops if top in SPLITS}) > 1:
        raise UhkdError(
            f"{title} mixes {' and '.join(sorted(splits))}: expected separate tars for each split, as train-0000.tar"
        )
    labels, classes = _labels(samples, title)
    bounds = np.cumsum([0, *map(len, shards)]).astype(np.int64)
    return Index(
        tuple(names),
        classes,
        np.array([(folder / name).stat().st_size for name in names], np.int64),
        bounds,
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.length for sample in samples], np.int64),
        np.array([sample.header for sample in samples], np.uint32),
        _keys([sample.key for sample in samples], names, bounds),
        labels,
        other_files,
    )


@dataclass
class _Group:
    """The adjacent members of one name."""

    key: str
    images: list[tuple[str, int, int, int]] = field(default_factory=list)  # extension, offset, length, header
    labels: dict[str, int | None] = field(default_factory=dict)

    def samples(self, path: Path, other_files: Counter[str]) -> Iterator[_Sample]:
        """Yield the sample, or one sample per image if the images' names have further dots and there is no label.

        Images that are no samples (NAME.mask.png beside NAME.jpg) are added to other_files.
        """
        plain = [image for image in self.images if "." not in image[0]]
        label = self.labels.get("cls", self.labels.get("json"))
        title = f"{escape(self.key)} in {escape(str(path))}"
        names = listed([image[0] for image in self.images])
        if (
            len(plain) > 1
            or (self.labels and self.images and not plain)
            or (plain and plain != self.images and not self.labels)
        ):
            raise UhkdError(
                f"the image of sample {title} is not clear ({names}): expected one NAME.jpg, others as NAME.kind.png with a "
                "NAME.cls; a name ends at its first dot"
            )
        if plain:
            other_files.update(image[0] for image in self.images if image not in plain)
        for extension, offset, length, header in plain or self.images:
            inner = extension.rpartition(".")[0]
            yield _Sample(f"{self.key}.{inner}" if inner else self.key, offset, length, header, label)


def _samples(path: Path, other_files: Counter[str]) -> Iterator[_Sample]:
    size = path.stat().st_size
    try:
        # "r:" accepts uncompressed tars only: compressed content has no byte positions
        with tarfile.open(path, "r:") as archive:
            group = _Group("")
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (it would keep every header)
                if not member.isreg() or member.issparse() or _hidden(member.name):
                    continue
                if member.offset_data + member.size > size:
                    raise UhkdError(
                        f"shard {escape(str(path))} is cut short: its headers describe more bytes than its {size:,}"
                    )
                stem, extension = _split(member.name)
                if stem != group.key:
                    yield from group.samples(path, other_files)
                    group = _Group(stem)
                kind = extension.rpartition(".")[2]
                if kind in endings():
                    header = zlib.crc32(_bytes(archive, member.offset_data - HEADER, HEADER))
                    group.images.append((extension, member.offset_data, member.size, header))
                elif extension in ("cls", "json"):
                    group.labels[extension] = _label(archive, member, extension, path)
                elif kind == "cls":
                    raise UhkdError(
                        f"{escape(member.name)} in {escape(str(path))}: a sample's name ends at its first dot, so this class "
                        "belongs to no sample: name it NAME.cls"
                    )
                else:
                    other_files[ending_of(member.name)] += 1
            yield from group.samples(path, other_files)
            # tarfile treats every unreadable header but the first as the end of the file
            if any(_bytes(archive, archive.offset, size - archive.offset)):
                raise UhkdError(
                    f"shard {escape(str(path))} is damaged at byte {archive.offset:,}, or contains a second tar archive there; "
                    "create the shard again"
                )
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise UhkdError(
            f"{escape(str(path))} cannot be read as a tar file ({error}): expected a plain one, not compressed"
        ) from error


def _bytes(archive: tarfile.TarFile, offset: int, count: int) -> bytes:
    file = archive.fileobj
    assert file is not None
    position = file.tell()
    file.seek(offset)
    content = file.read(count)
    file.seek(position)
    return content


def _split(name: str) -> tuple[str, str]:
    """Return path and extension, which begins at the first dot of the file name."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") or "__MACOSX" in name


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, path: Path) -> int | None:
    title = f"{escape(member.name)} in {escape(str(path))}"
    if member.size > _MAX_LABEL_BYTES:
        raise UhkdError(
            f"{title} has {member.size:,} bytes: expected a class, or a JSON description of up to {_MAX_LABEL_BYTES:,}"
        )
    text = _bytes(archive, member.offset_data, member.size).decode("utf-8", "replace").strip()
    if kind == "json":
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError):
            raise UhkdError(f"{title} is not JSON: expected a description with a label") from None
        label = metadata.get("label", metadata.get("cls")) if isinstance(metadata, dict) else None
        if label is None:
            return None
        # an empty text raises below
        text = str(label) if isinstance(label, int | str) and not isinstance(label, bool) else ""
    if not (text == "-1" or (text.isdecimal() and len(text) <= _DIGITS)):  # -1: unknown, as in some test splits
        raise UhkdError(f"{title} is {escape(text[:40])!r}: expected the number of a class, from 0")
    return int(text)


def _labels(samples: list[_Sample], title: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and class names: by numbers, else by folders, else -1."""
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
        raise UhkdError(f"{escape(stray)} of {title} is outside the class folders ({listed(folders[1:])})")
    positions = {name: position for position, name in enumerate(folders)}
    return np.array([positions[sample.folder] for sample in samples], np.int64), tuple(folders)


def _keys(stems: list[str], names: Sequence[str], bounds: np.ndarray) -> np.ndarray:
    """Return hashes of the samples' names; a name in several shards of a split is prefixed with that of the shard."""
    for shards in splits_of(names).values():
        counts = Counter(stems[i] for s in shards for i in range(bounds[s], bounds[s + 1]))
        for s in shards:
            seen: set[str] = set()
            for i in range(bounds[s], bounds[s + 1]):
                stem = stems[i]
                if stem in seen:
                    raise UhkdError(
                        f"two samples of one shard have the name {escape(f'{names[s]}/{stem}')}: members of a sample must be "
                        "next to each other"
                    )
                seen.add(stem)
                if counts[stem] > 1:
                    stems[i] = f"{names[s]}/{stem}"
    digests = (hashlib.blake2b(stem.encode("utf-8", "surrogateescape"), digest_size=8).digest() for stem in stems)
    return np.frombuffer(b"".join(digests), "<u8").copy()


def refuse_packed(path: Path) -> None:
    """Raise UhkdError for a compressed tar file, or a folder of nothing else: images in it cannot be read by position."""
    try:
        files = [path] if path.is_file() else [file for file in path.iterdir() if not file.name.startswith(".")]
    except OSError:  # reading it will raise
        return
    packed = [file.name for file in files if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", file.name.lower())]
    if packed and len(packed) == len(files):
        raise UhkdError(
            f"{escape(str(path))} is compressed ({escape(min(packed))}): images are read by position, "
            "from uncompressed .tar files; unpack them to .tar files or class folders"
        )
