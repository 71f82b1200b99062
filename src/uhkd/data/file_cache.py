"""Open files that are read by position, for sources that are copied into other processes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

_OPEN = 64  # files kept open at a time: some systems allow a process 256


class OpenFiles:
    """Reads from the files asked for last, which stay open; by any thread, and in other processes, where they are opened anew.

    most: files kept open (None: 64). One that is deleted meanwhile takes its room on the disk until it is closed.
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
        # a forked process shares these, but has numbers of its own for them: it may close its copies as well
        for descriptor in self._open.values():
            os.close(descriptor)

    def holds(self, path: Path) -> bool:
        """Whether a file is open in this process: it can be read though it be deleted."""
        return self._process == os.getpid() and path in self._open

    def read_into(self, buffer: Any, path: Path, offset: int) -> int:
        """Fill a writable buffer from a place in a file; how many bytes there were.

        Raises:
            OSError: when it cannot be opened or read.
        """
        # after a fork the numbers are those of the parent's files: they would work, but its bookkeeping is not ours
        if self._process != os.getpid():
            self._reset()
        with self._lock:  # else another thread might close what is about to be read
            descriptor = self._of(path)
            if hasattr(os, "preadv"):
                return os.preadv(descriptor, [buffer], offset)
            os.lseek(
                descriptor, offset, os.SEEK_SET
            )  # Windows: read where it stands, which under the lock nobody moves
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.readinto(buffer) or 0

    def _of(self, path: Path) -> int:
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= (self._most or _OPEN):
                os.close(self._open.popitem(last=False)[1])
            found = self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._open.move_to_end(path)
        return found
