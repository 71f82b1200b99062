"""Files that are read by position and stay open, also in worker processes."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

_OPEN = 64  # files open at a time: some systems allow 256 per process


class OpenFiles:
    """The most recently read files, kept open; usable by several threads, and in other processes, which reopen them.

    most: number of open files (None: 64). A file deleted in the meantime takes disk space until it is closed.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._reset()

    def _reset(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_most": self._most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._most = state["_most"]
        self._reset()

    def __del__(self) -> None:
        # a forked process has its own copies of the descriptors, and may close them
        for descriptor in self._open.values():
            os.close(descriptor)

    def holds(self, path: Path) -> bool:
        """Return whether a file is open in this process: then it can be read even if it was deleted."""
        return self._process == os.getpid() and path in self._open

    def read_into(self, buffer: Any, path: Path, offset: int) -> int:
        """Fill a writable buffer from byte `offset` of a file; return the number of bytes read.

        Raises:
            OSError: the file cannot be opened or read.
        """
        # after a fork the descriptors are the parent's: they would work, but its list of open files is not shared
        if self._process != os.getpid():
            self._reset()
        with self._lock:  # else another thread could close the file before it is read
            descriptor = self._descriptor(path)
            if hasattr(os, "preadv"):
                return os.preadv(descriptor, [buffer], offset)
            os.lseek(descriptor, offset, os.SEEK_SET)  # Windows: no read by position, but the lock protects the seek
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.readinto(buffer) or 0

    def _descriptor(self, path: Path) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= (self._most or _OPEN):
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._open.move_to_end(path)
        return descriptor
