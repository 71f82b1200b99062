"""Processes that end with the one that started them."""

import os
import subprocess
import sys
import threading


def start_child(module: str, argument: str) -> subprocess.Popen[str]:
    """Run `main()` of a module of ours with one argument, in a process of its own.

    A program of its own, not a child of multiprocessing: those import the caller's script anew, and may have no children
    themselves, which loading images needs. It ends when the pipe from this process closes, so also when this one is killed.
    On standard output, where results belong, it says nothing.
    """
    command = [sys.executable, "-c", f"from {module} import main; main()", argument]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def end_with_parent() -> None:
    """End this process, from a thread, when the one that started it is gone."""

    def wait() -> None:
        # until the parent's end of the pipe is closed; not by sys.stdin, whose lock a process forked meanwhile would wait for
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
