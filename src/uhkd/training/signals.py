"""Interruption of a training by signals, and agreement between its processes."""

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # SLURM can send the last one ahead of a time limit
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class TrainingInterrupted(KeyboardInterrupt):
    """A training was interrupted by a signal; `code` is a shell's exit code for it, `folder` the run folder."""

    def __init__(self, message: str, code: int = 130, folder: Path | None = None) -> None:
        super().__init__(message)
        self.code, self.folder = code, folder


def interrupted(number: int, step: int, total: int, last_checkpoint: str) -> TrainingInterrupted:
    """Return the interruption after `step` of `total` steps by signal `number`; last_checkpoint: a sentence on it."""
    message = f"stopped by {signal.Signals(number).name} after step {step} of {total}; {last_checkpoint}"
    return TrainingInterrupted(message, 128 + number)


class SignalHandler:
    """Records the signal that interrupts a training, so that it can stop after a step; a second Ctrl-C stops it at once.

    Signals that the calling program handles itself are left alone; outside of the main thread, all are.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None and signal.getsignal(number) in _DEFAULTS:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] (what signal.signal returned)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class ProcessGroupSync:
    """Shares numbers between all processes, as CPU tensors so that no GPU is waited for; with one process nothing is sent."""

    def __init__(self) -> None:
        self._group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def all_of(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of each process, exactly; every process must pass the same count."""
        if self._group is None:
            return [list(numbers)]
        gathered = [torch.empty(len(numbers), dtype=torch.float64) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, torch.tensor(numbers, dtype=torch.float64), group=self._group)
        return [tensor.tolist() for tensor in gathered]

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Return the elementwise maximum over all processes."""
        if self._group is None:
            return list(numbers)
        maximum = torch.tensor(numbers)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=self._group)
        return maximum.tolist()
