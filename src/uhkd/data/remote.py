"""Folders of tar shards: local, or a local cache of shards that are downloaded from a URL."""

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
_STALE = 3600.0  # seconds after which a temporary file is abandoned
_MAX_BYTES = 2**32  # of a file that is read at once: an index of a hundred million samples


def check_address(address: str) -> None:
    """Check that the scheme of a URL is one of `SCHEMES`.

    Raises:
        UhkdError: another scheme, or a chained URL.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES or not rest or "::" in address:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UhkdError(f"data at {address}: expected an address that begins with {schemes}")


def fetch(address: str) -> bytes:
    """Return the content of the file at a URL.

    Raises:
        UhkdError: it cannot be fetched, or has more than 4 GiB.
    """
    with _reading(address) as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UhkdError(f"{address} has more than {_MAX_BYTES:,} bytes: expected a small file")
    return content


class ShardStore:
    """Shards by name in a local folder, or downloaded to it from `address`; see `remote`."""

    def __init__(self, folder: Path, address: str | None = None, max_bytes: float = float("inf")) -> None:
        self.folder, self.address, self.max_bytes = folder, address, max_bytes

    @staticmethod
    def remote(address: str, edition: bytes, keep: str | None, keep_gb: float) -> "ShardStore":
        """Return shards at a URL that fsspec reads (https, s3, gs, hf, file), each downloaded as a whole at its first use.

        Args:
            address: URL of the folder.
            edition: the content of its index; another set of shards at the same URL gets another folder.
            keep: folder of the cache, shared by all processes of the machine; None: the user's cache folder.
            keep_gb: size of the cache in GB per URL; the shards that were downloaded first are deleted first.
        """
        base = Path(keep or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "uhkd").expanduser()
        name = hashlib.blake2b(address.encode() + b"\n" + edition, digest_size=12).hexdigest()
        return ShardStore(base / "shards" / name, address, keep_gb * 1e9)

    def path(self, name: str, size: int) -> Path:
        """Return the file of a shard of `size` bytes, downloaded if necessary.

        Raises:
            UhkdError: it cannot be downloaded, or has another size.
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
                    file.truncate(size)  # so that other processes count its space
            with _reading(f"{self.address}/{name}") as source, temporary.open("r+b") as file:
                shutil.copyfileobj(source, file, _CHUNK)
                received = file.tell()
            if received != size:
                raise UhkdError(
                    f"{self.address}/{name} has {received:,} bytes, but {size:,} in its index: make the index again "
                    "(uhkd index), or restore the shard"
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete the oldest shards until `size` more bytes fit; a process that has one open can still read it."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process may delete it at the same time
                status = path.stat()
                if path.name.startswith(".") and path.suffix == ".tmp" and time.time() - status.st_mtime > _STALE:
                    path.unlink()
                elif path.suffix in (".tar", ".tmp"):
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if total + size <= self.max_bytes:
                break
            if path.suffix == ".tar":
                path.unlink(missing_ok=True)
                total -= length


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
    except UhkdError:
        raise
    except Exception as error:  # each storage library raises its own errors
        raise UhkdError(f"{address} cannot be fetched ({type(error).__name__}: {error})") from error
