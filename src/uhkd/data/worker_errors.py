"""Messages for loader processes that cannot be started or are ended."""

import sys
from collections.abc import Iterable
from typing import Any

from torch import multiprocessing

from uhkd.errors import UhkdError

_RUN_AGAIN = 78  # exit code of a process that would run the user's script again
_GUARD = (
    'a loader process imports the script again here, and would run it again: put its calls below `if __name__ == "__main__":`'
    ", or use workers=0"
)


def check_main_guard() -> None:
    """End a loader process that executes the user's script instead of loading images, because the script has no main guard."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # set while the script is imported
        print(f"uhkd: {_GUARD}", file=sys.stderr)
        raise SystemExit(_RUN_AGAIN)


def start_error(error: Exception) -> UhkdError | None:
    """Return the message for an error while loader processes are started; None for errors of other kinds."""
    if "Pickling" in type(error).__name__ or "pickle" in str(error):
        return UhkdError(
            f"the data set cannot be sent to loader processes ({error}): define its class and functions at the top level of a "
            "module, open files in __getitem__, or use workers=0"
        )
    spawned = multiprocessing.get_start_method() != "fork"
    return UhkdError(_GUARD) if spawned and isinstance(error, EOFError | ConnectionError) else None


def worker_error(error: RuntimeError, workers: Iterable[Any]) -> UhkdError | None:
    """Return the message for the end of one of the loader processes; None if it has raised an exception of another kind."""
    text = str(error)
    for worker in workers if multiprocessing.get_start_method() != "fork" else ():
        worker.join(1)  # makes its exit code known
        if worker.exitcode == _RUN_AGAIN:
            return UhkdError(_GUARD)
    if "shared memory" in text or "shm" in text or "Bus error" in text:
        return UhkdError(
            "the shared memory of the loader processes is full (/dev/shm): in Docker start the container with --shm-size 8g or "
            "--ipc=host; or use fewer --workers, a smaller batch, or --workers 0"
        )
    if "DataLoader worker (pid" not in text:
        return None
    return UhkdError(
        f"a process that loads images was ended from outside ({text}); often memory is short: use fewer --workers "
        "or a smaller batch, or --workers 0 to load in the training's own process"
    )
