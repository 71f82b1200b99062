"""Images in tar shards, local or remote, read by position: any order can be shuffled, resumed and distributed."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from uhkd.console import escape, listed, pluralize
from uhkd.data.datasets import RawSplits
from uhkd.data.decode import common_size, decodable, decode_bytes
from uhkd.data.file_cache import OpenFiles
from uhkd.data.formats import describe_other_files
from uhkd.data.names import is_remote, names_shards
from uhkd.data.remote import ShardStore, check_address, fetch
from uhkd.data.sampler import ShardShuffle
from uhkd.data.sources import ImageSource, Split, content_hash
from uhkd.data.tar_headers import make_index
from uhkd.data.tar_index import HEADER, INDEX, SPLITS, Index, read_index, splits_of
from uhkd.errors import UhkdError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_REMOTE_AT_A_TIME = 8  # shards
_REMOTE_OPEN = 4  # files
_HEADERS = 16  # images whose header is read to check whether all have one size


@dataclass(frozen=True)
class ShardOptions:
    """How tar shards are read: see `ShardShuffle` (at_a_time None: all images together) and `ShardStore.remote`."""

    at_a_time: int | None = None
    streams: int = 1
    keep: str | None = None
    keep_gb: float = 100.0


class ShardSource:
    """The samples of tar shards by position; they have keys, so a view does not depend on the shard of its image."""

    def __init__(
        self, store: ShardStore, index: Index, labels: np.ndarray | None, shuffle: ShardShuffle | None
    ) -> None:
        self.store, self.index, self.labels, self.shuffle = store, index, labels, shuffle
        self.keys = index.keys
        # remote shards are deleted from the cache to make room, but an open file takes its space until it is closed
        self._files = OpenFiles(None if store.address is None else _REMOTE_OPEN)

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return image `index`: (3,H,W) uint8."""
        return decode_bytes(*self.content(index))

    def content(self, index: int) -> tuple[bytes, str]:
        """Return the bytes of the image file `index`, and its name in messages.

        Raises:
            UhkdError: its shard cannot be read, or differs from the index.
        """
        shard = int(np.searchsorted(self.index.bounds, index, side="right")) - 1
        name, size = self.index.names[shard], int(self.index.sizes[shard])
        length, offset = int(self.index.lengths[index]), int(self.index.offsets[index])
        buffer, path = bytearray(HEADER + length), self.store.folder / name
        title = f"image {index - int(self.index.bounds[shard])} of shard {escape(str(path))}"
        for last_try in (False, True):
            if not self._files.holds(path):
                self.store.path(name, size)
            try:
                read = self._files.read_into(buffer, path, offset - HEADER)
                break
            except OSError as error:
                # another process may have just deleted it from the cache to make room
                if last_try or self.store.address is None or not isinstance(error, FileNotFoundError):
                    raise UhkdError(f"{title} cannot be read ({error.strerror}): restore the shard") from error
        if read != len(buffer):
            short = max(0, read - HEADER)
            raise UhkdError(f"{title} is cut short: expected {length:,} bytes, found {short:,}; restore the shard")
        # the size does not identify a shard, because tars are padded to whole blocks
        if zlib.crc32(buffer[:HEADER]) != self.index.headers[index]:
            raise UhkdError(
                f"{title} is not the image in the index: restore the shard, or make the index again (uhkd index)"
            )
        return bytes(buffer[HEADER:]), title

    def fingerprint(self) -> str:
        """Return a hash of keys, labels, lengths, and the bounds of the shards if order and mixing partners depend on them."""
        labels = b"unlabelled" if self.labels is None else np.ascontiguousarray(self.labels)
        return content_hash(self.keys, labels, self.index.lengths, b"" if self.shuffle is None else self.shuffle.bounds)


def is_sharded(name: str) -> bool:
    """Return whether a name of data means tar shards: wds/..., a .tar, a {0..9} pattern of them, a folder of them, or a URL."""
    if names_shards(name):
        return True
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return False
    if (folder / INDEX).is_file():
        return True
    # a single tar next to class folders, or next to train/ and val/ with class folders, does not make them shards
    folders = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return all(p.name.lower() in SPLITS and _only_tars(p) for p in folders) and any(tars(folder))


def _only_tars(folder: Path) -> bool:
    return not any(p.is_dir() for p in folder.iterdir()) and any(folder.glob("*.tar"))


def read_shards(
    name: str, options: ShardOptions, *, class_names: tuple[str, ...] | None, skip_bad_images: bool
) -> tuple[str, RawSplits]:
    """Open tar shards; return a name for them, and their splits, which are those in the names of the shards.

    Args:
        name: of a folder, a file, a pattern of files or a URL.
        options: how they are read.
        class_names: of a trained network.
        skip_bad_images: decode every image once and leave out those that fail.

    Raises:
        UhkdError: no shards, none for training, or an error of `make_index` or `ShardStore`.
    """
    if not Path(name).expanduser().exists():
        name = name.removeprefix("wds/")
    notes: list[str] = []
    if is_remote(name):
        at_a_time = options.at_a_time or _REMOTE_AT_A_TIME
        store, index = _open_remote(name, options, at_a_time)
        if options.at_a_time is None:
            notes.append(f"remote shards are shuffled {at_a_time} at a time (--shuffle-shards)")
    else:
        at_a_time = options.at_a_time
        folder, names = _find(Path(name).expanduser())
        store, index = ShardStore(folder), _read_or_make_index(folder, names, notes)
    if index.other_files:
        notes.append(
            f"left aside, because they are neither images nor labels: {describe_other_files(index.other_files)}"
        )
    members = splits_of(index.names)
    if "train" not in members:
        raise UhkdError(
            f"{escape(name)} holds no training shards, only {', '.join(members)}: expected names like train-0000.tar"
        )
    classes = index.classes
    if classes:
        present = np.unique(index.of(members["train"]).labels)
        classes = class_names or tuple(index.classes[label] for label in present)
    sources: dict[str, ImageSource] = {}
    size = None
    for split, shards in members.items():
        split_index = index.of(shards)
        shuffle = None if at_a_time is None else ShardShuffle(split_index.bounds, at_a_time, options.streams)
        source = ShardSource(store, split_index, _labels(split_index, classes, split), shuffle)
        sources[split] = source
        notes.append(f"{len(source):,} {split} images in {pluralize(len(shards), 'shard')}")
        if split == "train":
            size = _common_size(source)
    if at_a_time is not None:
        streams = f" in each of {options.streams} streams" if options.streams > 1 else ""
        notes.append(f"shuffled {pluralize(at_a_time, 'shard')} at a time{streams}; mixed within a shard")
    if skip_bad_images:
        sources = {split: _without_bad_images(source, split, notes) for split, source in sources.items()}
    splits = RawSplits(classes, sources["train"], sources.get("val"), sources.get("test"), size, tuple(notes))
    return Path(name.rstrip("/")).name.removesuffix(".tar"), splits


def _open_remote(address: str, options: ShardOptions, at_a_time: int) -> tuple[ShardStore, Index]:
    check_address(address)
    if address.endswith(".tar"):
        raise UhkdError(
            f"data at {address}: a URL must be a folder of shards with {INDEX}; patterns work for local shards only"
        )
    address = address.rstrip("/")
    edition = fetch(f"{address}/{INDEX}")
    index = read_index(edition, f"{address}/{INDEX}")
    store = ShardStore.remote(address, edition, options.keep, options.keep_gb)
    needed = min(len(index.names), at_a_time * options.streams) * int(index.sizes.max(initial=0))
    if needed > store.max_bytes:
        raise UhkdError(
            f"shard_cache_gb: expected at least {needed / 1e9:.3g}, for the {pluralize(at_a_time, 'shard')} in each of "
            f"{pluralize(options.streams, 'stream')} that are read at a time, found {options.keep_gb:.3g}"
        )
    return store, index


def tars(folder: Path) -> Sequence[Path]:
    """Return the tar shards in a folder and its subfolders, sorted, without hidden ones."""
    return sorted(file for depth in ("*.tar", "*/*.tar") for file in folder.glob(depth) if file.name[0] != ".")


def _without_bad_images(source: ImageSource, split: str, notes: list[str]) -> ImageSource:
    good = decodable(len(source), source.image)
    if good.all():
        return source
    notes.append(f"{(~good).sum():,} of {len(source):,} {split} images cannot be decoded: skipped")
    return Split(source, np.flatnonzero(good))


def _find(path: Path) -> tuple[Path, list[str]]:
    """Return the folder of the shards, and their sorted names in it."""
    if path.is_dir():
        names = [tar.relative_to(path).as_posix() for tar in tars(path)]
        if not names:
            raise UhkdError(f"no tar files in {escape(str(path))}: expected shards like train-0000.tar")
        return path, names
    if "*" in path.name:
        raise UhkdError(
            f"{escape(str(path))}: * is not supported: give the folder, or a range as in train-{{00..46}}.tar"
        )
    names = list(expand(path.name))
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        others = "does" if len(missing) == 1 else f"and {pluralize(len(missing) - 1, 'other')} do"
        raise UhkdError(f"shard {escape(str(path.parent / missing[0]))} {others} not exist")
    return path.parent, names


def expand(name: str) -> list[str]:
    """Return the names that match a pattern like train-{0000..0146}.tar."""
    match = _RANGE.search(name)
    if match is None:
        return [name]
    first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) >= 10**6:
        raise UhkdError(f"{name}: expected {{FIRST..LAST}} with LAST from FIRST up, and fewer than a million shards")
    tails = expand(name[match.end() :])
    heads = (f"{name[: match.start()]}{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [head + tail for head in heads for tail in tails]


def _read_or_make_index(folder: Path, names: list[str], notes: list[str]) -> Index:
    """Return the stored index if it matches the shards, else a new one, with a note."""
    file = folder / INDEX
    if file.is_file():
        index = read_index(file.read_bytes(), str(file))
        positions = {name: position for position, name in enumerate(index.names)}
        if all(name in positions for name in names):
            index = index.of([positions[name] for name in names])
            if _matches(index, folder):
                return index
        notes.append(
            f"{file} does not match these shards, so the tar headers are read instead; run uhkd index to rebuild it"
        )
    return make_index(folder, names)


def _matches(index: Index, folder: Path) -> bool:
    """Return whether the shards are no newer than the index and have its sizes and its first and last images."""
    source = ShardSource(ShardStore(folder), index, None, None)
    counts = np.diff(index.bounds)
    ends = np.concatenate([index.bounds[:-1][counts > 0], index.bounds[1:][counts > 0] - 1]).tolist()
    try:
        files = [(folder / name).stat() for name in index.names]
        # the time is checked because classes are in separate members, which the images' headers do not cover
        newer = max(file.st_mtime for file in files) > (folder / INDEX).stat().st_mtime
        same_sizes = [file.st_size for file in files] == index.sizes.tolist()
        return not newer and same_sizes and all(source.content(i) for i in ends)
    except (OSError, UhkdError):
        return False


def _labels(index: Index, classes: tuple[str, ...], split: str) -> np.ndarray | None:
    """Return the labels of one split as positions in `classes`; None if it has none."""
    labels = index.labels
    if len(labels) and labels.min() < 0 <= labels.max():
        raise UhkdError(f"some {split} samples have a negative class: expected numbers from 0")
    if index.classes:
        positions = {name: position for position, name in enumerate(classes)}
        if unknown := sorted({index.classes[label] for label in np.unique(labels)} - positions.keys()):
            raise UhkdError(f"{split} shards have classes that are not among those expected: {listed(unknown)}")
        labels = np.array([positions.get(name, -1) for name in index.classes], np.int64)[labels]
    return None if len(labels) and labels.max() < 0 else labels


def _common_size(source: ShardSource) -> tuple[int, int] | None:
    if not len(source):
        return None
    # only of the first shard with images: others may have to be downloaded
    first = int(source.index.bounds[source.index.bounds > 0][0])
    return common_size(first, lambda i: source.content(i)[0], _HEADERS)
