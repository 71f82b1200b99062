"""What a training tells of itself: rows of metrics.csv, lines for a person, progress.json for whoever watches, loggers."""

import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from uhkd.reporting.health import factors, gradient_shares, health, leads, terms_of
from uhkd.runs import ProgressFile
from uhkd.training.loggers import Loggers
from uhkd.training.progress import ProgressBar
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.setup import Setup

_RARELY, _BEAT = 1.0, 10.0  # seconds: between two writings of progress.json, and when one is due without a log line
_RECENT = 60  # points of a term that are shown at once
_SPEED = ("images_per_second", "data_wait")


class MetricsWriter:
    """Writes metrics, progress and log lines of each step, epoch and end; in the first process alone.

    Args:
        setup: recipe, run folder and processes.
        progress: the bar or the plain lines.
        rows: of metrics.csv so far; the list is added to.
        weights: of the terms, given to loggers once.
        say: prints a line.
        begun: step of the checkpoint from which the run resumes; 0 for a new run.
        total, per_epoch: steps.
    """

    def __init__(
        self,
        setup: Setup,
        progress: ProgressBar,
        rows: list[dict[str, float]],
        weights: Mapping[str, float],
        log_line: Callable[[str], None],
        *,
        start_step: int,
        total: int,
        per_epoch: int,
    ) -> None:
        self.recipe, self.folder, self.first = setup.recipe, setup.folder, setup.fabric.is_global_zero
        self.progress, self.rows, self.weights, self.log_line = progress, rows, weights, log_line
        self.start_step, self.total, self.per_epoch = start_step, total, per_epoch
        self.health = health(rows, self.folder.read_arrays()) if self.first and rows else []
        self.terms: dict[str, float] = {}
        self.recent: dict[str, deque[float]] = {}
        self.lr: float | None = None
        self.speed: dict[str, float] = {}
        self.step, self.seconds, self.written = start_step, 0.0, -math.inf
        self._sums: dict[str, float] = {}  # as they were at the log line before
        self._logged, self._broken = False, False

    def __enter__(self) -> Self:
        options = self.recipe.model_dump(mode="json")
        self.loggers = Loggers(
            self.recipe.log if self.first else (), self.folder, options, self.start_step, self.log_line
        )
        if not self.start_step:
            self.loggers.metrics({f"weight/{name}": weight for name, weight in self.weights.items()}, 0)
        self._write("running", "training", soon=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = "success" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        why = (str(error or "").splitlines() or [""])[0]
        self._write("finished" if kind is None else ending, "nothing", why=why, soon=True)
        self.loggers.close(ending)

    def restored(self, totals: RunningMetrics) -> None:
        """What a checkpoint had summed up was told already."""
        self._sums = totals.as_dict()

    def beat(self, step: int, seconds: float, doing: str = "training") -> None:
        """A sign of life; nothing waits for the device."""
        self.step, self.seconds = step, seconds
        if time.monotonic() - self.written >= (_BEAT if doing == "training" else _RARELY):
            self._write("running", doing)

    def log(self, step: int, seconds: float, totals: RunningMetrics, lr: float) -> None:
        """A log line, with means of the epoch so far; loggers and watchers get those of the steps since the line before."""
        self.step, self.seconds, self.lr = step, seconds, lr
        self.progress.log(totals.means(), lr)
        if not self.first:
            return
        sums = totals.as_dict()
        count = sums.pop("count") - self._sums.get("count", 0)
        if count > 0:  # none where all steps since were skipped
            self._remember({name: (value - self._sums.get(name, 0.0)) / count for name, value in sums.items()})
            self._logged = True
        self._sums = totals.as_dict()
        values = {f"train/{name}": value for name, value in self.terms.items()}
        values |= {f"speed/{name}": value for name, value in self.progress.rates().items()}
        self.loggers.metrics(values | {"lr": lr, "epochs_done": step / self.per_epoch}, step)
        self._write("running", "training")

    def row(self, row: dict[str, float], arrays: Mapping[str, np.ndarray], last_checkpoint: str) -> None:
        """One more row of metrics.csv, and the arrays of diagnostics.npz so far.

        kept: says what there is to go on from.

        Raises:
            UhkdError: when the disk does not take them.
        """
        self.rows.append(row)
        if self.first:
            with self.folder.writing(f"the rows of step {row['step']:.0f}", last_checkpoint):
                self.folder.write_metrics(self.rows)
                self.folder.write_arrays(arrays)
        self.progress.epoch(row, self.recipe.epochs)
        self._sums = {}
        if not self.first:
            return
        self.health = health(self.rows, arrays)
        if self.health:
            self.log_line(f"health: {'; '.join(self.health)}")
        self.step, self.seconds, self.lr = int(row["step"]), row["seconds"], row["lr"]
        means = {name: row[name] for name in ("loss", *terms_of(row)) if name in row}
        if self._logged:
            self._logged = False
        else:
            self._remember(means)
        values = {f"epoch/{name}": value for name, value in means.items()}
        if self.step % self.recipe.log_every:  # else the log line has told them
            values |= {"lr": row["lr"], "epochs_done": row["epoch"]} | {f"speed/{name}": row[name] for name in _SPEED}
        values |= {f"val/{k.removeprefix('val_')}": v for k, v in row.items() if k.startswith("val_")}
        values |= {f"gradient/{name}": share for name, share in gradient_shares(row).items()}
        values |= {f"factor/{name}": factor for name, factor in factors(row).items()}
        values |= {f"lead/{teacher}" if teacher else "lead": lead for teacher, lead in leads(row).items()}
        values |= {name: row[name] for name in ("skipped",) if name in row}
        self.loggers.metrics(values, self.step)
        self.loggers.text("health", "; ".join(self.health) or "nothing to say", self.step)
        self._write("running", "training")

    def _remember(self, means: Mapping[str, float]) -> None:
        self.terms = {name: value for name, value in means.items() if math.isfinite(value)}
        for name, value in self.terms.items():
            self.recent.setdefault(name, deque(maxlen=_RECENT)).append(value)

    def _write(self, state: str, doing: str, *, why: str = "", soon: bool = False) -> None:
        """progress.json, once a second at most but where it begins and ends; a disk that refuses is no reason to end."""
        if not self.first or (not soon and time.monotonic() - self.written < _RARELY):
            return
        self.written = time.monotonic()
        done = self.step - self.start_step
        if done and state == "running":
            self.speed = self.progress.rates()
        status = ProgressFile(
            state=state,  # pyright: ignore[reportArgumentType] (pydantic looks)
            doing=doing,
            step=self.step,
            total=self.total,
            epoch=min(self.step // self.per_epoch + 1, self.recipe.epochs),
            epochs=self.recipe.epochs,
            terms=self.terms,
            recent={name: list(values) for name, values in self.recent.items()},
            lr=self.lr,
            seconds=self.seconds,
            eta_seconds=self.progress.eta(self.step) if done else None,
            health=self.health,
            why=why,
            process=os.getpid(),
            machine=platform.node(),
            time=time.time(),
            images_per_second=self.speed.get("images_per_second"),
            data_wait=self.speed.get("data_wait"),
        )
        try:
            status.write(self.folder.path)
        except OSError as error:
            if not self._broken:
                self._broken = True
                self.log_line(
                    f"warning: progress.json cannot be written ({error.strerror or error}); uhkd watch shows less"
                )
