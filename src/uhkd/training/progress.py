"""What a person sees while a network trains: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from uhkd import console

Item = TypeVar("Item")
_BAR = 20  # letters: with the counts and times beside it, it leaves room for a loss on 80 columns

# what tells how good a network is, best known first: all but the accuracy only where there are no labels
FORMS = {"accuracy": ".2%", "agreement": ".2%", "feature_error": ".3f", "cka": ".3f"}


class ProgressBar:
    """Counts steps and seconds, shows ETA, images a second and the share of time spent waiting for data.

    Args:
        total, start: steps in all and already done.
        images: images a step.
        say: receives one plain line per epoch (and, without a terminal, per log).
    """

    def __init__(self, total: int, images: int, *, start: int, log_line: Callable[[str], None]) -> None:
        self.images, self.log_line = images, log_line
        self.total, self.step, self.waited, self.excluded = total, start, 0.0, 0.0
        self.began, self.first = time.monotonic(), start
        self.bar = None
        if console.is_interactive():
            columns = (BarColumn(_BAR), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave of the terminal
            self.bar = Progress(
                *columns, TextColumn("{task.description}", table_column=rest), transient=True, expand=True
            )
            self.task = self.bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def follow(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches, noting how long each was waited for."""
        batches = iter(batches)
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - began
            yield batch
            self.step += 1
            if self.bar is not None:
                self.bar.update(self.task, completed=self.step)

    @contextlib.contextmanager
    def exclude(self) -> Iterator[None]:
        """What happens inside is not training: validation, checkpoints."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.excluded += time.monotonic() - began

    def rates(self) -> dict[str, float]:
        """Images a second and the share of time waiting for data, in the training of this process so far."""
        elapsed = max(time.monotonic() - self.began - self.excluded, 1e-9)
        done = self.step + 1 - self.first
        return {
            "images_per_second": round(done * self.images / elapsed, 1),
            "data_wait": round(self.waited / elapsed, 4),
        }

    def log(self, means: Mapping[str, float], lr: float) -> None:
        """Loss terms so far in this epoch."""
        rates, done = self.rates(), self.step + 1
        terms = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
        speed = f"{rates['images_per_second']:.0f} img/s, waiting for data {rates['data_wait']:.0%}"
        if self.bar is not None:
            loss = f"loss {means['loss']:.3f}  " if "loss" in means else ""
            self.bar.update(self.task, description=f"{loss}{rates['images_per_second']:.0f} img/s")
            return
        self.log_line(f"step {done}/{self.total}  {terms}  lr {lr:.2g}  {speed}  ETA {clock(self.eta(done))}")

    def eta(self, done: int) -> float:
        """Seconds that the rest may take, validation and checkpoints as often as so far, after `done` steps in all."""
        return (time.monotonic() - self.began) / max(1, done - self.first) * (self.total - done)

    def epoch(self, row: Mapping[str, float], epochs: int) -> None:
        """The validation after an epoch; without a loss when all its steps were skipped."""
        rates = self.rates()
        has_evaluator = (
            f"val {name.replace('_', ' ')} {row[f'val_{name}']:{form}}  "
            for name, form in FORMS.items()
            if f"val_{name}" in row
        )
        self.log_line(
            f"epoch {row['epoch']:.0f}/{epochs}  loss {row.get('loss', math.nan):.3f}  {''.join(has_evaluator)}"
            f"{rates['images_per_second']:.0f} img/s, waiting for data {rates['data_wait']:.0%}"
        )


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
