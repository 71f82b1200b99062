"""Child processes that end with their parent."""

import os
import subprocess
import sys
import threading


def start_child(module: str, argument: str) -> subprocess.Popen[str]:
    """Run `main()` of a module of this package with one argument in a new process.

    A new program, not a child of multiprocessing: that would import the script of the caller again, and could not have the
    child processes that loading images needs. It ends when its pipe from this process closes, even if this one is killed. Its
    standard output, which is for results, is discarded.
    """
    command = [sys.executable, "-c", f"from {module} import main; main()", argument]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent has ended."""

    def wait() -> None:
        # until the parent's end of the pipe is closed; reading sys.stdin would hold a lock that forked processes inherit
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
