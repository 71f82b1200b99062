"""Shards: files with records of one view, written as a whole, read at random; each record has its checksum."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt32

from uhkd.data import OpenFiles
from uhkd.errors import UhkdError

HEAD = 8  # bytes before each record: its checksum, and that of the view that the teacher received
_SHARD = 2048  # records per shard: the work lost when a process is killed, or repeated when a shard is damaged


@dataclass(frozen=True, order=True)
class Shard:
    """Records of the images `start` to `stop` - 1 of one view."""

    view: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Path of the file relative to the folder of the cache."""
        return f"view-{self.view:04d}/shard-{self.number:05d}.bin"


class CorruptShard(UhkdError):
    """A shard is missing, truncated, or differs from what was written."""

    def __init__(self, shard: Shard, folder: Path, why: str) -> None:
        self.problem = f"{folder / shard.name} {why}"
        super().__init__(f"{self.problem}; rewrite only this shard with: uhkd cache -c {folder} --out {folder}")


class Shards:
    """All records of a cache by (view, image); can be pickled.

    Files are read by offset, not memory-mapped: mapped pages count as memory of the process and grow with the images read, and
    a mapped file that was truncated kills the process instead of raising an error.

    Args:
        folder: of the cache.
        images: number of images.
        size: bytes of a record without its head.
        key: of the cache; part of the checksums, which thus detect shards of another cache, view or index.
    """

    def __init__(self, folder: Path, images: int, size: int, key: str) -> None:
        self.folder, self.images, self.size, self.key = folder, images, size, key
        self._salt = zlib.crc32(key.encode())
        self._files = OpenFiles()

    def of_view(self, view: int) -> Iterator[Shard]:
        """Yield the shards of one view in order."""
        for number in range(-(-self.images // _SHARD)):
            yield self._shard(view, number)

    def bytes_of(self, shard: Shard) -> int:
        """Return the size of a complete shard."""
        return (shard.stop - shard.start) * (HEAD + self.size)

    def is_complete(self, shard: Shard) -> bool:
        """Return whether the file exists in its full length."""
        try:
            return (self.folder / shard.name).stat().st_size == self.bytes_of(shard)
        except OSError:
            return False

    def missing(self, views: int) -> list[Shard]:
        """Return the shards of the first `views` views that do not exist in full length."""
        return [shard for view in range(views) for shard in self.of_view(view) if not self.is_complete(shard)]

    def checksum(self, view: int, index: int, body: Any) -> int:
        """Return the checksum of a record; it depends on the cache, the view and the image too."""
        return zlib.crc32(body, zlib.crc32(view.to_bytes(8, "little") + index.to_bytes(8, "little"), self._salt))

    def encode(self, view: int, start: int, checksums: np.ndarray, bodies: UInt8[np.ndarray, "b n"]) -> bytes:
        """Return the bytes of a shard with the images `start`, `start` + 1, ...; checksums: (B,) of their views."""
        rows = np.empty((len(bodies), HEAD + self.size), np.uint8)
        rows[:, 4:HEAD] = checksums.astype("<u4")[:, None].view(np.uint8)
        rows[:, HEAD:] = bodies
        sums = np.array([self.checksum(view, start + i, row[4:].data) for i, row in enumerate(rows)], "<u4")
        rows[:, :4] = sums[:, None].view(np.uint8)
        return rows.tobytes()

    def read(self, view: int, index: np.ndarray) -> UInt8[np.ndarray, "b n"]:
        """Return the records (without heads) of images by index, in any order.

        Raises:
            CorruptShard: a record is damaged, or its shard is missing.
        """
        return self._rows(view, index)[:, HEAD:]

    def read_for(self, view: int, index: np.ndarray, checksums: np.ndarray) -> UInt8[np.ndarray, "b n"]:
        """Return records as `read` does, after comparing the (B,) checksums of the views of the caller with the stored ones.

        Raises:
            CorruptShard: as `read`.
            UhkdError: a view differs from the one that the teacher received.
        """
        rows = self._rows(view, index)
        if len(differing := np.flatnonzero(_stored_checksums(rows) != checksums)):
            raise UhkdError(
                f"view {view} of image {index[differing[0]]} differs from the one that the teacher of {self.folder} received: "
                "the file of the image has changed, or another version of a library augments differently; create the cache "
                f"again (another --out), or use the versions in {self.folder / 'environment.json'}"
            )
        return rows[:, HEAD:]

    def checksums(self, view: int, index: np.ndarray) -> UInt32[np.ndarray, " b"]:
        """Return the (B,) checksums of the views that the teacher received."""
        return _stored_checksums(self._rows(view, index))

    def check(self, shard: Shard) -> None:
        """Compare all records of a shard with their checksums.

        Raises:
            CorruptShard: names the first damaged record.
        """
        if not self.is_complete(shard):
            raise CorruptShard(shard, self.folder, self.state(shard))
        for start in range(shard.start, shard.stop, 256):
            self._rows(shard.view, np.arange(start, min(start + 256, shard.stop)))

    def _rows(self, view: int, index: np.ndarray) -> np.ndarray:
        wide = HEAD + self.size
        rows = np.empty((len(index), wide), np.uint8)
        for row, i in zip(rows, index.tolist(), strict=True):
            number, row_in_shard = divmod(i, _SHARD)
            shard = self._shard(view, number)
            try:
                read = self._files.read_into(row.data, self.folder / shard.name, row_in_shard * wide)
            except FileNotFoundError as error:
                raise CorruptShard(shard, self.folder, self.state(shard)) from error
            except OSError as error:  # too many open files or no permission: the shard itself may be valid
                raise UhkdError(f"{self.folder / shard.name} cannot be read: {error}") from error
            if read != wide or int.from_bytes(row[:4].tobytes(), "little") != self.checksum(view, i, row[4:].data):
                why = f"is damaged: the checksum of record {row_in_shard} (image {i} of view {view}) differs"
                raise CorruptShard(shard, self.folder, why)
        return rows

    def _shard(self, view: int, number: int) -> Shard:
        start = number * _SHARD
        return Shard(view, number, start, min(start + _SHARD, self.images))

    def state(self, shard: Shard) -> str:
        """Describe how the file differs from a complete shard."""
        path = self.folder / shard.name
        if not path.exists():
            return "is missing"
        return f"is damaged: expected {self.bytes_of(shard)} bytes, found {path.stat().st_size}"


def _stored_checksums(rows: UInt8[np.ndarray, "b n"]) -> UInt32[np.ndarray, " b"]:
    return rows[:, 4:HEAD].copy().view("<u4")[:, 0]
