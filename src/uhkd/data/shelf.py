"""Where shards lie: a folder, or elsewhere, from where they are fetched whole and kept for a while."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock

SCHEMES = ("https", "http", "s3", "gs", "hf", "file")
_CHUNK = 2**22


def is_remote(word: str) -> bool:
    """Whether a word for data is an address."""
    return "://" in word


class Shelf:
    """Shards by name in a folder of this machine; see `remote` for those from elsewhere."""

    def __init__(self, folder: Path, address: str | None = None, most: float = float("inf")) -> None:
        self.folder, self.address, self.most = folder, address, most

    @staticmethod
    def remote(address: str, keep: str | None, keep_gb: float) -> Shelf:
        """Shards at an address, by fsspec (https, s3, gs, hf, file), fetched whole when one is first asked for.

        They are kept in `keep` (None: the user's cache folder), shared by all processes of the machine, and at most `keep_gb`
        GB of them: those that were fetched first go first.

        Raises:
            ValueError: an address of another kind.
        """
        scheme, _, rest = address.partition("://")
        if scheme not in SCHEMES or not rest or "::" in address:
            raise ValueError(
                f"data at {address}: expected an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        base = (
            Path(keep).expanduser()
            if keep
            else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "uhkd"
        )
        name = hashlib.blake2b(address.rstrip("/").encode(), digest_size=8).hexdigest()
        return Shelf(base / "shards" / name, address.rstrip("/"), keep_gb * 1e9)

    def path(self, name: str, size: int) -> Path:
        """The file of a shard of `size` bytes, fetched if it is not here.

        Raises:
            ValueError: when it cannot be fetched, or has another size.
        """
        path = self.folder / name
        if self.address is None or path.exists():
            return path
        with self._held(name):
            if not path.exists():  # another process may have been faster
                self._make_room(size)
                self._fetch(name, path, size)
        return path

    def fetch_index(self, name: str) -> bytes:
        """What the file `name` at the address holds.

        Raises:
            ValueError: when it cannot be fetched.
        """
        with self._reading(name) as file:
            return file.read()

    def _fetch(self, name: str, path: Path, size: int) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with self._reading(name) as source, temporary.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
            if (found := temporary.stat().st_size) != size:
                raise ValueError(
                    f"{self.address}/{name} has {found:,} bytes, its index says {size:,}: make the index anew (uhkd index), "
                    "or put the shard back"
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _reading(self, name: str) -> Iterator[BinaryIO]:
        import fsspec

        try:
            with fsspec.open(f"{self.address}/{name}", "rb") as file:
                yield cast(BinaryIO, file)
        except ValueError:
            raise
        except Exception as error:  # each kind of store raises errors of its own
            raise ValueError(f"{self.address}/{name} cannot be fetched ({type(error).__name__}: {error})") from error

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            yield

    def _make_room(self, size: int) -> None:
        """Delete the shards that were fetched first until `size` bytes more may be kept; who reads them still can."""
        kept = sorted(
            (path.stat().st_mtime, path) for path in self.folder.rglob("*.tar") if not path.name.startswith(".")
        )
        held = sum(path.stat().st_size for _, path in kept)
        for _, path in kept:
            if held + size <= self.most:
                break
            held -= path.stat().st_size
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
