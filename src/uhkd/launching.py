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


def says_it_first(line: str) -> bool:
    """Whether no other process of this torchrun has said the same: a mistake that all of them meet is told once.

    The launcher's own store decides, so that a fault of one process alone is told by that one. Without it every process speaks.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment.get("WORLD_SIZE", "1") == "1":
        return True
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore

        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"uhkd/said/{line}", 1) == 1
    except Exception:  # a line too many is better than none
        return True
