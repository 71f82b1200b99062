"""The lock of a run folder: one process at a time."""

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
PATIENCE = 30.0  # seconds until the loader processes of a killed training have ended


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the lock ends with the process at the latest.

    File systems without locks (some network mounts) are not protected.

    Raises:
        UhkdError: if another process holds the lock, with its name.
    """
    lock = FileLock(folder / LOCK)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except NotImplementedError:
            yield
            return
        except Timeout as error:
            owner = owner_of(folder)
            if process_may_be_alive(owner) or time.monotonic() > deadline:
                text = f"process {owner.get('process')} on {owner.get('machine')} since {owner.get('since')}"
                raise UhkdError(
                    f"{folder} is in use by {text if owner else 'another process'}; wait for it, stop it, or choose another "
                    "--out"
                ) from error
            time.sleep(0.2)
    owner = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        write_atomically(folder / OWNER, json.dumps(owner) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk may have become read-only; an earlier error must not be hidden
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def owner_of(folder: Path) -> dict[str, object]:
    """Return process, machine and time of the process that holds the lock; empty if unknown."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def process_may_be_alive(owner: Mapping[str, object]) -> bool:
    """Return whether {"process", "machine"} may be running: False only for an ended process of this machine, or without owner."""
    process = owner.get("process")
    if owner.get("machine") != platform.node() or not isinstance(process, int) or os.name != "posix":
        return bool(owner)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
