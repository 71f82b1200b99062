"""A training that is asked to end: by Ctrl-C, by a cluster's notice, by one of several processes."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

ASKING = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last: what SLURM can send ahead of a time limit
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class TrainingInterrupted(KeyboardInterrupt):
    """A training ended as it was asked to, after its state was saved; `code` is a shell's exit code for the signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class SignalHandler:
    """Notes that a signal asked for the end, so that the training can end after a step; a second Ctrl-C ends it at once.

    Signals that the program around it handles in its own way stay with it; so do all of them outside of the main thread.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ASKING:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None and signal.getsignal(number) in _DEFAULTS:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] (what signal.signal gave)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class ProcessGroupSync:
    """Several processes answer alike: what any of them says counts for all.

    By a group of CPU tensors, so that no GPU is waited for; with one process nothing is sent.
    """

    def __init__(self) -> None:
        self._group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def all_of(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of each process, to the bit; all must bring equally many."""
        if self._group is None:
            return [list(numbers)]
        numbers_of = [torch.empty(len(numbers), dtype=torch.float64) for _ in range(dist.get_world_size())]
        dist.all_gather(numbers_of, torch.tensor(numbers, dtype=torch.float64), group=self._group)
        return [one.tolist() for one in numbers_of]

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all processes."""
        if self._group is None:
            return list(numbers)
        numbers_of = torch.tensor(numbers)
        dist.all_reduce(numbers_of, op=dist.ReduceOp.MAX, group=self._group)
        return numbers_of.tolist()
