"""Where shards lie: a folder, or elsewhere, from where they are fetched whole and kept for a while."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock

from uhkd.errors import UhkdError

SCHEMES = ("https", "http", "s3", "gs", "hf", "file")
_CHUNK = 2**22
_STALE = 3600.0  # seconds after which nobody writes to a temporary file any more
_LARGEST = 2**32  # bytes of a file that is read whole: an index of a hundred million samples


def check_address(address: str) -> None:
    """Refuse an address that is not fetched.

    Raises:
        UhkdError: an address of another kind.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES or not rest or "::" in address:
        raise UhkdError(
            f"data at {address}: expected an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}"
        )


def fetch(address: str) -> bytes:
    """What the file at an address holds.

    Raises:
        UhkdError: when it cannot be fetched, or has more than 4 GiB.
    """
    with _reading(address) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise UhkdError(f"{address} has more than {_LARGEST:,} bytes: expected a small file")
    return content


class ShardStore:
    """Shards by name in a folder of this machine; see `remote` for those from elsewhere."""

    def __init__(self, folder: Path, address: str | None = None, most: float = float("inf")) -> None:
        self.folder, self.address, self.most = folder, address, most

    @staticmethod
    def remote(address: str, edition: bytes, keep: str | None, keep_gb: float) -> ShardStore:
        """Shards at an address, by fsspec (https, s3, gs, hf, file), fetched whole when one is first asked for.

        They are kept in `keep` (None: the user's cache folder), shared by all processes of the machine, and at most `keep_gb`
        GB of each address: those that were fetched first go first. edition: what tells this set of shards from others that lie
        or lay there, its index.
        """
        base = (
            Path(keep).expanduser()
            if keep
            else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "uhkd"
        )
        name = hashlib.blake2b(address.encode() + b"\n" + edition, digest_size=12).hexdigest()
        return ShardStore(base / "shards" / name, address, keep_gb * 1e9)

    def path(self, name: str, size: int) -> Path:
        """The file of a shard of `size` bytes, fetched if it is not here.

        Raises:
            UhkdError: when it cannot be fetched, or has another size there.
        """
        path = self.folder / name
        if self.address is None or _size(path) == size:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if _size(path) != size:  # another process may have been faster
                self._fetch(name, path, size)
        return path

    def _fetch(self, name: str, path: Path, size: int) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with FileLock(self.folder / ".room.lock"):
                self._make_room(size)
                with temporary.open("wb") as file:
                    file.truncate(size)  # for the others, who count it
            with _reading(f"{self.address}/{name}") as source, temporary.open("r+b") as file:
                shutil.copyfileobj(source, file, _CHUNK)
                found = file.tell()
            if found != size:
                raise UhkdError(
                    f"{self.address}/{name} has {found:,} bytes, its index says {size:,}: make the index anew (uhkd index), "
                    "or put the shard back"
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete the shards that were fetched first until `size` bytes more may be kept; who has one open still reads it."""
        in_memory: list[tuple[float, int, Path]] = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # what another process has just deleted takes no room
                if path.name.startswith(".") and path.suffix == ".tmp" and time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
                elif path.suffix in (".tar", ".tmp"):
                    in_memory.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(each for _, each, _ in in_memory)
        for _, each, path in sorted(in_memory):
            if total + size <= self.most:
                break
            if path.suffix == ".tar":
                path.unlink(missing_ok=True)
                total -= each


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


@contextmanager
def _reading(address: str) -> Iterator[BinaryIO]:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            yield cast(BinaryIO, file)
    except ValueError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        raise UhkdError(f"{address} cannot be fetched ({type(error).__name__}: {error})") from error
