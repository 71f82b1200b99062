"""Records on disk: shards of one view each, written whole, read at random, every record with its own checksum."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt32

from uhkd.data import OpenFiles
from uhkd.errors import UhkdError

HEAD = 8  # bytes before each record's own: its checksum, and that of the view which the teacher saw
_SHARD = 2048  # records a shard: what is lost by a kill, or made anew when one is damaged


@dataclass(frozen=True, order=True)
class Shard:
    """Records `start` up to `stop` (images by index) of one view."""

    view: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Its file below the cache's folder."""
        return f"view-{self.view:04d}/shard-{self.number:05d}.bin"


class CorruptShard(UhkdError):
    """A shard that is missing, cut short or holds other bytes than were written."""

    def __init__(self, shard: Shard, folder: Path, why: str) -> None:
        super().__init__(
            f"{folder / shard.name} {why}; make it anew, and it alone, with: uhkd cache -c {folder} --out {folder}"
        )
        self.shard = shard


class Shards:
    """All records of a cache by (view, image); may be sent to other processes.

    Files are read by position, not mapped: pages of a map count as the process's memory and grow with the images seen, and a
    map of a file that was cut short kills the process instead of raising an error.

    Args:
        folder: the cache's.
        images: N.
        size: bytes of a record without its head.
        key: of this cache; checksums hold it, so a shard of another cache, view or place is not mistaken for one of these.
    """

    def __init__(self, folder: Path, images: int, size: int, key: str) -> None:
        self.folder, self.images, self.size, self.key = folder, images, size, key
        self._salt = zlib.crc32(key.encode())
        self._files = OpenFiles()

    def of_view(self, view: int) -> Iterator[Shard]:
        """The shards of one view, in order."""
        for number, start in enumerate(range(0, self.images, _SHARD)):
            yield Shard(view, number, start, min(start + _SHARD, self.images))

    def bytes_of(self, shard: Shard) -> int:
        """Size of its file."""
        return (shard.stop - shard.start) * (HEAD + self.size)

    def is_complete(self, shard: Shard) -> bool:
        """Whether its file is there in its full length."""
        try:
            return (self.folder / shard.name).stat().st_size == self.bytes_of(shard)
        except OSError:
            return False

    def missing(self, views: int) -> list[Shard]:
        """Shards of the first `views` views that are not there in full length."""
        return [shard for view in range(views) for shard in self.of_view(view) if not self.is_complete(shard)]

    def checksum(self, view: int, index: int, body: Any) -> int:
        """Of a record: depends on the cache, the view and the image too."""
        return zlib.crc32(body, zlib.crc32(view.to_bytes(8, "little") + index.to_bytes(8, "little"), self._salt))

    def encode(self, view: int, start: int, checksums: np.ndarray, bodies: UInt8[np.ndarray, "b n"]) -> bytes:
        """Records as they lie in a shard: images `start`, `start` + 1, ...; pictures: (B,) checksums of their views."""
        rows = np.empty((len(bodies), HEAD + self.size), np.uint8)
        rows[:, 4:HEAD] = checksums.astype("<u4")[:, None].view(np.uint8)
        rows[:, HEAD:] = bodies
        sums = np.array([self.checksum(view, start + i, row[4:].data) for i, row in enumerate(rows)], "<u4")
        rows[:, :4] = sums[:, None].view(np.uint8)
        return rows.tobytes()

    def read(self, view: int, index: np.ndarray) -> UInt8[np.ndarray, "b n"]:
        """Records (without heads) of images by index, in any order.

        Raises:
            DamagedShard: naming the shard and the record.
        """
        return self._rows(view, index)[:, HEAD:]

    def read_for(self, view: int, index: np.ndarray, checksums: np.ndarray) -> UInt8[np.ndarray, "b n"]:
        """Records (without heads) of images by index, whose views made here have the checksums `checksums` (B,).

        Raises:
            DamagedShard: naming the shard and the record.
            UhkdError: for a view that is not the one which the teacher saw.
        """
        rows = self._rows(view, index)
        if len(other := np.flatnonzero(_stored_checksums(rows) != checksums)):
            raise UhkdError(
                f"view {view} of image {index[other[0]]} is not the one whose signals {self.folder} holds: its file has changed, "
                "or another version of a library augments in another way; make the cache anew (another --out), or use the "
                f"versions in {self.folder / 'environment.json'}"
            )
        return rows[:, HEAD:]

    def checksums(self, view: int, index: np.ndarray) -> UInt32[np.ndarray, " b"]:
        """(B,) checksums of the views that the teacher saw."""
        return _stored_checksums(self._rows(view, index))

    def check(self, shard: Shard) -> None:
        """Read a whole shard against its checksums.

        Raises:
            DamagedShard: naming the first record that is not what was written.
        """
        if not self.is_complete(shard):
            raise CorruptShard(shard, self.folder, self.state(shard))
        for start in range(shard.start, shard.stop, 256):
            self._rows(shard.view, np.arange(start, min(start + 256, shard.stop)))

    def _rows(self, view: int, index: np.ndarray) -> np.ndarray:
        wide = HEAD + self.size
        rows = np.empty((len(index), wide), np.uint8)
        for row, i in zip(rows, index.tolist(), strict=True):
            number, place = divmod(i, _SHARD)
            shard = self._shard(view, number)
            try:
                read = self._files.read_into(row.data, self.folder / shard.name, place * wide)
            except FileNotFoundError as error:
                raise CorruptShard(shard, self.folder, self.state(shard)) from error
            except OSError as error:  # too many open files, no permission: nothing is wrong with the shard
                raise UhkdError(f"{self.folder / shard.name} cannot be read: {error}") from error
            if read != wide or int.from_bytes(row[:4].tobytes(), "little") != self.checksum(view, i, row[4:].data):
                why = f"is damaged: record {place} (image {i} of view {view}) is not what was written"
                raise CorruptShard(shard, self.folder, why)
        return rows

    def _shard(self, view: int, number: int) -> Shard:
        start = number * _SHARD
        return Shard(view, number, start, min(start + _SHARD, self.images))

    def state(self, shard: Shard) -> str:
        """What is wrong with the length of its file, in words."""
        path = self.folder / shard.name
        if not path.exists():
            return "is missing"
        return f"is damaged: expected {self.bytes_of(shard)} bytes, found {path.stat().st_size}"


def _stored_checksums(rows: UInt8[np.ndarray, "b n"]) -> UInt32[np.ndarray, " b"]:
    return rows[:, 4:HEAD].copy().view("<u4")[:, 0]
