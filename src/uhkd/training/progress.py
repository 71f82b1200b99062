"""Progress of a training: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from uhkd import console
from uhkd.runs.status import span

Item = TypeVar("Item")
_BAR_WIDTH = 20  # characters: leaves room for counts, times and a loss on 80 columns

# validation metrics to print, most common first; those after the accuracy are measured without labels
_FORMATS = {"accuracy": ".2%", "agreement": ".2%", "feature_error": ".3f", "cka": ".3f"}


class ProgressBar:
    """Counts steps and prints ETA, images per second and the share of time spent waiting for data.

    Args:
        total: steps of the whole training.
        images: images per step.
        start: steps already done.
        log_line: prints one line per epoch and, without a terminal, one per `log`.
    """

    def __init__(self, total: int, images: int, *, start: int, log_line: Callable[[str], None]) -> None:
        self.images, self.log_line = images, log_line
        self.total, self.step, self.waited, self.excluded = total, start, 0.0, 0.0
        self.began, self.first = time.monotonic(), start
        self.bar = None
        if console.is_interactive():
            text = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
            columns = (BarColumn(_BAR_WIDTH), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), text)
            self.bar = Progress(*columns, transient=True, expand=True)
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
        """Yield the batches, count them, and measure the time waited for each."""
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
        """Exclude the time spent inside (validation, checkpoints) from the rates."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.excluded += time.monotonic() - began

    def rates(self) -> dict[str, float]:
        """Return images per second and the share of time (0 to 1) waiting for data, since this process started training."""
        elapsed = max(time.monotonic() - self.began - self.excluded, 1e-9)
        done = self.step + 1 - self.first
        return {
            "images_per_second": round(done * self.images / elapsed, 1),
            "data_wait": round(self.waited / elapsed, 4),
        }

    def eta(self, done: int) -> float:
        """Return the estimated remaining seconds, with validation and checkpoints, after `done` steps."""
        return (time.monotonic() - self.began) / max(1, done - self.first) * (self.total - done)

    def log(self, means: Mapping[str, float], lr: float) -> None:
        """Print loss terms, learning rate and speed; on a terminal update the bar."""
        done = self.step + 1
        if self.bar is not None:
            loss = f"loss {means['loss']:.3f}  " if "loss" in means else ""
            self.bar.update(self.task, description=f"{loss}{self.rates()['images_per_second']:.0f} img/s")
            return
        terms = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
        self.log_line(f"step {done}/{self.total}  {terms}  lr {lr:.2g}  {self._speed()}  ETA {span(self.eta(done))}")

    def epoch(self, row: Mapping[str, float], epochs: int) -> None:
        """Print the validation after an epoch; the loss is nan if all steps were skipped."""
        validation = "".join(f"val {metric}  " for metric in format_metrics(row))
        self.log_line(
            f"epoch {row['epoch']:.0f}/{epochs}  loss {row.get('loss', math.nan):.3f}  {validation}{self._speed()}"
        )

    def _speed(self) -> str:
        rates = self.rates()
        return f"{rates['images_per_second']:.0f} img/s, waiting for data {rates['data_wait']:.0%}"


def format_metrics(row: Mapping[str, float]) -> list[str]:
    """Return the validation metrics of a row of metrics.csv as text, such as "accuracy 12.34%"."""
    return [
        f"{name.replace('_', ' ')} {row[f'val_{name}']:{form}}"
        for name, form in _FORMATS.items()
        if f"val_{name}" in row
    ]
