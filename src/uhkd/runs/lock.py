"""One process at a time in a run folder."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from uhkd.errors import UhkdError
from uhkd.runs.files import write_atomically

LOCK, OWNER = ".lock", ".owner"
PATIENCE = 30.0  # seconds in which the loader's processes of a killed training notice that it is gone


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """The folder as this process's own while the context lasts; one that ends, however it ends, holds nothing.

    A file system without locks (some network mounts) goes unguarded.

    Raises:
        UhkdError: when another process holds it, which is named.
    """
    lock = FileLock(folder / LOCK)
    patient_until = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except NotImplementedError:
            yield
            return
        except Timeout as error:
            if process_may_be_alive(owner_of(folder)) or time.monotonic() > patient_until:
                raise UhkdError(
                    f"{folder} is in use by {_owner(folder)}; wait for it, stop it, or choose another --out"
                ) from error
            time.sleep(0.2)
    owner = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        write_atomically(folder / OWNER, json.dumps(owner) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):  # of a disk that has become read-only: what happened before is what counts
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def owner_of(folder: Path) -> dict[str, object]:
    """The process, machine and time of the one that holds the folder; empty where none is noted."""
    try:
        noted = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _owner(folder: Path) -> str:
    noted = owner_of(folder)
    if not noted:
        return "another process"
    return f"process {noted.get('process')} on {noted.get('machine')} since {noted.get('since')}"


def process_may_be_alive(noted: Mapping[str, object]) -> bool:
    """Whether the noted {"process", "machine"} may still be at work: not when it was one of this machine and is gone."""
    process = noted.get("process")
    if noted.get("machine") != platform.node() or not isinstance(process, int) or os.name != "posix":
        return bool(noted)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
