"""Open files that are read by position, for sources that are copied into other processes."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

_OPEN = 64  # files kept open at a time: some systems allow a process 256


class Descriptors:
    """The descriptors of the files read last; may be sent to other processes, where they are opened anew."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __del__(self) -> None:
        # a forked process shares these, but has numbers of its own for them: it may close its copies as well
        for descriptor in self._open.values():
            os.close(descriptor)

    def of(self, path: Path) -> int:
        """Return the descriptor of a file, opened to be read.

        Raises:
            OSError: when it cannot be opened.
        """
        # after a fork the numbers are those of the parent's files: they would work, but its bookkeeping is not ours
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _OPEN:
                os.close(self._open.popitem(last=False)[1])
            found = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(path)
        return found
