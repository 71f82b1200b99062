"""Processes of the soak: commands of one or of several processes, their clock, what is left of them, their memory. Linux."""

import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from uhkd.__main__ import main as uhkd

DAY = 86400.0  # seconds


def fork(work: Callable[[], object], log: Path, session: bool = True) -> int:
    """A process with the libraries that are loaded here. session: in a session of its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if session:
            os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(int(code))  # pyright: ignore[reportArgumentType]


def start(fields: list[str], log: Path, processes: int = 1, jumps: float | None = None) -> int:
    """A command of uhkd by so many processes. jumps: seed of the times to which its clock is set."""

    def command() -> int:
        if jumps is not None:
            set_clock(random.Random(jumps))
        return uhkd(fields)

    return fork(command if processes == 1 else lambda: together(command, processes, log), log)


def together(command: Callable[[], int], processes: int, log: Path) -> int:
    """Run a command by processes that train as one, as torchrun does: once one fails, the others are asked to end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def rank(number: int) -> int:
        size = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": number, "LOCAL_RANK": number}
        place = {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "soak"}
        os.environ.update({name: str(value) for name, value in (size | place).items()})
        return command()

    def give_up(*_: object) -> None:
        for process in working:
            os.kill(process, signal.SIGKILL)
        raise TimeoutError("a process was still there a minute after another one had failed")

    working, first = {fork(lambda number=number: rank(number), log, session=False) for number in range(processes)}, 0
    signal.signal(signal.SIGALRM, give_up)
    while working:
        process, status = os.wait()
        working.remove(process)
        if (code := os.waitstatus_to_exitcode(status)) and not first:
            first = code if code > 0 else 128 - code
            signal.alarm(60)
            for other in working:
                os.kill(other, signal.SIGTERM)
    return first


def set_clock(chance: random.Random) -> None:
    """Let the clock of this process be set four times within three seconds, by up to a day in either direction."""
    clock, began = time.time, time.monotonic()
    jumps = [(began + chance.uniform(0, 3), chance.uniform(-DAY, DAY)) for _ in range(4)]
    time.time = lambda: clock() + sum(jump for moment, jump in jumps if time.monotonic() >= moment)


def wait(child: int, seconds: float) -> bool:
    """Wait so long, or until it ended; whether it still works. Its number stays its own."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.01)
    return True


def ended(child: int) -> int:
    """Its exit code, once it ended; below 0 by a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def children(parent: int) -> list[int]:
    """The processes that a process has started and that are there."""
    return [process for process, (state, of, *_) in stats() if of == str(parent) and state != "Z"]


def stats() -> Iterator[tuple[int, list[str]]]:
    """State, parent, group and session of each process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()[:4]


def left_of(session: int) -> list[int]:
    """Processes of an ended one's session that are still there half a minute later."""
    until = time.monotonic() + 30
    while True:
        left = [process for process, (state, _, _, own) in stats() if own == str(session) and state != "Z"]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def resident(process: int) -> float:
    """Memory of a process in MB, without pages of files."""
    pages = Path(f"/proc/{process}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6
