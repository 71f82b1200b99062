"""A process among those that torchrun started."""

import os
import signal
import threading
import time
from functools import cache


@cache
def end_with_launcher() -> None:
    """Ask this process to end, as a scheduler would, when torchrun, which started it, is gone; others are left alone.

    Killed, torchrun leaves its processes behind: they would train on unseen, or wait for half an hour for each other to begin.
    To be called before anything slow: what has lost its parent already cannot tell.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.name != "posix":
        return
    launcher = os.getppid()

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
