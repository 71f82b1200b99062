"""Images in tar shards, here or elsewhere: read by position, so that any order can be shuffled, resumed and dealt out."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from uhkd.console import escape, pluralize
from uhkd.data.datasets import RawSplits
from uhkd.data.decode import decodable, decode_bytes, header_size
from uhkd.data.file_cache import OpenFiles
from uhkd.data.names import is_remote, names_shards
from uhkd.data.remote import ShardStore, check_address, fetch
from uhkd.data.sampler import ShardShuffle
from uhkd.data.sources import ImageSource, Split, content_hash
from uhkd.data.tar_headers import make_index
from uhkd.data.tar_index import HEADER, INDEX, PARTS, Index, parts_of, read_index
from uhkd.errors import UhkdError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_AT_A_TIME = 8  # shards from elsewhere
_OPEN_FROM_ELSEWHERE = 4
_HEADERS = 16  # images whose header is read to learn whether all share one size


@dataclass(frozen=True)
class ShardOptions:
    """How tar shards are read.

    at_a_time, streams: see `ShardShuffle`; at_a_time None: all images are shuffled at once. keep, keep_gb: where shards from
    elsewhere are kept, and how much of them; see `ShardStore`.
    """

    at_a_time: int | None = None
    streams: int = 1
    keep: str | None = None
    keep_gb: float = 100.0


class ShardSource:
    """Samples of tar shards by position; they have keys, so a view does not depend on the shard its image lies in."""

    def __init__(
        self, store: ShardStore, index: Index, labels: np.ndarray | None, shuffle: ShardShuffle | None
    ) -> None:
        self.store, self.index, self.labels, self.shuffle = store, index, labels, shuffle
        self.keys = index.keys
        # shards from elsewhere are deleted to make room, which those that are open do not give back
        self._files = OpenFiles() if store.address is None else OpenFiles(_OPEN_FROM_ELSEWHERE)

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Image `index`, (3, H, W) bytes."""
        content, title = self.content(index)
        return decode_bytes(content, title)

    def content(self, index: int) -> tuple[bytes, str]:
        """What the image file `index` holds, and what to call it.

        Raises:
            UhkdError: when its shard cannot be read, or is another than the index was made of.
        """
        shard = int(np.searchsorted(self.index.bounds, index, side="right")) - 1
        name, size = self.index.names[shard], int(self.index.sizes[shard])
        length, offset = int(self.index.lengths[index]), int(self.index.offsets[index])
        found, path = bytearray(HEADER + length), self.store.folder / name
        title = f"image {index - int(self.index.bounds[shard])} of shard {escape(str(path))}"
        for last in (False, True):
            if not self._files.holds(path):
                self.store.path(name, size)
            try:
                read = self._files.read_into(found, path, offset - HEADER)
                break
            except OSError as error:
                # another process may have deleted it to make room, just now
                if last or self.store.address is None or not isinstance(error, FileNotFoundError):
                    raise UhkdError(f"{title} cannot be read ({error.strerror}): put the shard back") from error
        if read != len(found):
            short = max(0, read - HEADER)
            raise UhkdError(f"{title} is cut short: expected {length:,} bytes, found {short:,}; put the shard back")
        # a shard of the same size may be another, as tars are filled up to whole blocks
        if zlib.crc32(found[:HEADER]) != self.index.headers[index]:
            raise UhkdError(
                f"{title} is not the one that was there: put the shard back, or make its index anew (uhkd index)"
            )
        return bytes(found[HEADER:]), title

    def fingerprint(self) -> str:
        """Return a hash of keys, labels and lengths, and of the shards' bounds where order and partners depend on them."""
        labels = b"unlabelled" if self.labels is None else np.ascontiguousarray(self.labels)
        return content_hash(self.keys, labels, self.index.lengths, b"" if self.shuffle is None else self.shuffle.bounds)


def is_sharded(name: str) -> bool:
    """Whether a word for data names tar shards: wds/..., a .tar, a {0..9} pattern of them, a folder with them, or elsewhere."""
    if names_shards(name):
        return True
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return False
    if (folder / INDEX).is_file():
        return True
    # a stray tar beside class folders, or beside train/ and val/ with class folders, makes no shards of them
    folders = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return all(p.name.lower() in PARTS and _only_tars(p) for p in folders) and any(tars(folder))


def _only_tars(folder: Path) -> bool:
    return not any(p.is_dir() for p in folder.iterdir()) and any(folder.glob("*.tar"))


def read_shards(
    name: str, options: ShardOptions, *, class_names: tuple[str, ...] | None, skip_bad_images: bool
) -> tuple[str, RawSplits]:
    """Open tar shards: a name for them, and their parts; `train`, `val` and `test` in the shards' names tell which is which.

    class_names: of a trained network. skip_bad_images decodes every image once and drops those that fail.

    Raises:
        UhkdError: no shards, none of training, or what `make_index` and `ShardStore` refuse.
    """
    if not Path(name).expanduser().exists():
        name = name.removeprefix("wds/")
    notes, at_a_time = [], options.at_a_time
    if is_remote(name):
        check_address(name)
        if name.endswith(".tar"):
            raise UhkdError(
                f"data at {name}: an address is a folder of shards with {INDEX} in it; patterns are for shards here"
            )
        name = name.rstrip("/")
        edition = fetch(f"{name}/{INDEX}")
        index = read_index(edition, f"{name}/{INDEX}")
        store = ShardStore.remote(name, edition, options.keep, options.keep_gb)
        if at_a_time is None:
            at_a_time = _AT_A_TIME
            notes.append(f"shards from elsewhere are shuffled {at_a_time} at a time (--shards-at-a-time)")
        least = min(len(index.names), at_a_time * options.streams) * int(index.sizes.max(initial=0))
        if least > store.most:
            raise UhkdError(
                f"shard_cache_gb: expected at least {least / 1e9:.3g}, for the {pluralize(at_a_time, 'shard')} in each of "
                f"{pluralize(options.streams, 'stream')} "
                f"that are read at a time, found {options.keep_gb:.3g}"
            )
    else:
        folder, names = _find(Path(name).expanduser())
        store = ShardStore(folder)
        index, note = _index(folder, names)
        notes += [note] if note else []
    members = parts_of(index.names)
    if "train" not in members:
        raise UhkdError(
            f"{escape(name)} holds no training shards, only {', '.join(members)}: expected names like train-0000.tar"
        )
    classes = index.classes and (class_names or tuple(_present(index, members["train"])))
    found = {
        part: _source(store, index.of(shards), index.classes, classes, part, at_a_time, options.streams)
        for part, shards in members.items()
    }
    train, sources = found["train"], dict[str, ImageSource](found)
    notes += [
        f"{len(found[part]):,} {part} images in {pluralize(len(shards), 'shard')}" for part, shards in members.items()
    ]
    if train.shuffle is not None:
        streams = f" in each of {options.streams} streams" if options.streams > 1 else ""
        notes.append(
            f"shuffled {pluralize(at_a_time or len(members['train']), 'shard')} at a time{streams}; mixed within a shard"
        )
    if skip_bad_images:
        sources = {part: _drop_bad(source, part, notes) for part, source in found.items()}
    title = Path(name.rstrip("/")).name.removesuffix(".tar")
    return title, RawSplits(
        tuple(classes), sources["train"], sources.get("val"), sources.get("test"), _common_size(train), tuple(notes)
    )


def tars(folder: Path) -> Sequence[Path]:
    """The tar shards in a folder and the folders in it, sorted; hidden ones left out."""
    return sorted(
        path for depth in ("*.tar", "*/*.tar") for path in folder.glob(depth) if not path.name.startswith(".")
    )


def _drop_bad(source: ShardSource, part: str, notes: list[str]) -> ImageSource:
    good = decodable(len(source), source.image)
    if good.all():
        return source
    notes.append(f"{(~good).sum():,} of {len(source):,} {part} images cannot be decoded: skipped")
    return Split(source, np.flatnonzero(good))


def _find(path: Path) -> tuple[Path, list[str]]:
    """The folder of the shards, and their names below it, sorted."""
    if path.is_dir():
        names = [tar.relative_to(path).as_posix() for tar in tars(path)]
        if not names:
            raise UhkdError(f"no tar files in {escape(str(path))}: expected shards like train-0000.tar")
        return path, names
    if "*" in path.name:
        raise UhkdError(
            f"{escape(str(path))}: * is not understood: give the folder, or a range as in train-{{00..46}}.tar"
        )
    names = list(expand(path.name))
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UhkdError(f"shard {escape(str(path.parent / missing[0]))} does not exist{more}")
    return path.parent, names


def expand(name: str) -> list[str]:
    """The names that a pattern like train-{0000..0146}.tar stands for."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    if int(last) < int(first) or int(last) - int(first) >= 10**6:
        raise UhkdError(f"{name}: expected {{FIRST..LAST}} with LAST from FIRST up, and fewer than a million shards")
    tails = expand(name[found.end() :])
    heads = (f"{name[: found.start()]}{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [head + tail for head in heads for tail in tails]


def _index(folder: Path, names: list[str]) -> tuple[Index, str | None]:
    """The kept index if it is of these shards, else one made anew, with a note why."""
    file, why = folder / INDEX, None
    if file.is_file():
        index = read_index(file.read_bytes(), str(file))
        places = {name: place for place, name in enumerate(index.names)}
        if all(name in places for name in names):
            found = index.of([places[name] for name in names])
            if _is_of(found, folder):
                return found, None
        why = f"{file} is not of these shards: their headers are read (uhkd index makes it anew)"
    return make_index(folder, names), why


def _is_of(index: Index, folder: Path) -> bool:
    """Whether the shards in a folder are no newer than its index, with the sizes and the first and last images that it says."""
    source = ShardSource(ShardStore(folder), index, None, None)
    counts = np.diff(index.bounds)
    ends = np.concatenate([index.bounds[:-1][counts > 0], index.bounds[1:][counts > 0] - 1]).tolist()
    try:
        files = [(folder / name).stat() for name in index.names]
        # classes lie in members of their own, which headers of images say nothing about
        newer = max(file.st_mtime for file in files) > (folder / INDEX).stat().st_mtime
        return (
            not newer
            and [file.st_size for file in files] == index.sizes.tolist()
            and all(source.content(i) for i in ends)
        )
    except (OSError, ValueError):
        return False


def _present(index: Index, shards: list[int]) -> list[str]:
    return [index.classes[label] for label in np.unique(index.of(shards).labels)]


def _source(
    store: ShardStore,
    index: Index,
    named: tuple[str, ...],
    classes: tuple[str, ...],
    part: str,
    at_a_time: int | None,
    streams: int,
) -> ShardSource:
    labels = index.labels
    if len(labels) and labels.min() < 0 <= labels.max():
        raise UhkdError(f"some {part} samples have a negative class: expected numbers from 0")
    if named:
        places = {name: place for place, name in enumerate(classes)}
        if unknown := sorted({named[label] for label in np.unique(labels)} - places.keys()):
            raise UhkdError(
                f"{part} shards have classes that are not among those expected: {', '.join(map(escape, unknown[:8]))}"
            )
        labels = np.array([places.get(name, -1) for name in named], np.int64)[labels]
    shuffle = None if at_a_time is None else ShardShuffle(index.bounds, at_a_time, streams)
    return ShardSource(store, index, None if len(labels) and labels.max() < 0 else labels, shuffle)


def _common_size(source: ShardSource) -> tuple[int, int] | None:
    if not len(source):
        return None
    # of the first shard with images: those of others may have to be fetched
    first = int(source.index.bounds[source.index.bounds > 0][0])
    looked_at = np.unique(np.linspace(0, first - 1, _HEADERS).astype(int))
    sizes = {header_size(source.content(int(i))[0]) for i in looked_at} - {None}
    return sizes.pop() if len(sizes) == 1 else None
