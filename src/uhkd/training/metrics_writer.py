"""Output of a training: metrics.csv, diagnostics.npz, log lines, progress.json and loggers."""

import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import numpy as np

from uhkd.data import batch_images
from uhkd.reporting.health import factors, gradient_shares, health, leads, terms_of
from uhkd.runs import ProgressFile
from uhkd.training.loggers import Loggers
from uhkd.training.progress import ProgressBar
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.setup import Setup

_MIN_INTERVAL = 1.0  # seconds between two writes of progress.json
_HEARTBEAT = 10.0  # seconds after which it is written without a log line
_RECENT = 60  # recent values of a term in progress.json


class MetricsWriter:
    """Writes metrics, progress and log lines of a training; only the first process writes files.

    Args:
        setup: recipe, run folder and processes.
        progress: the bar or the plain lines.
        rows: rows of metrics.csv so far; `write_row` appends to it.
        weights: of the loss terms, logged once.
        log_line: prints a line.
        start_step: step of the checkpoint from which the run resumes; 0 for a new run.
        per_epoch: steps per epoch.
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
        per_epoch: int,
    ) -> None:
        self.recipe, self.folder, self.is_first = setup.recipe, setup.folder, setup.fabric.is_global_zero
        self.progress, self.rows, self.weights, self.log_line = progress, rows, weights, log_line
        self.start_step, self.per_epoch = start_step, per_epoch
        self.status = ProgressFile(
            state="running",
            step=start_step,
            total=per_epoch * setup.recipe.epochs,
            epoch=1,
            epochs=setup.recipe.epochs,
            health=health(rows, self.folder.read_arrays()) if self.is_first and rows else [],
            process=os.getpid(),
            machine=platform.node(),
            time=time.time(),
        )
        self.last_write = -math.inf
        self._sums: dict[str, float] = {}  # count and sums at the previous log line
        self._logged, self._warned = False, False

    def __enter__(self) -> Self:
        names = self.recipe.log if self.is_first else ()
        self.loggers = Loggers(names, self.folder, self.recipe.model_dump(mode="json"), self.start_step, self.log_line)
        if not self.start_step:
            self.loggers.metrics({f"weight/{name}": weight for name, weight in self.weights.items()}, 0)
        self._write_progress("running", "training", force=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "success" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        why = (str(error or "").splitlines() or [""])[0]
        self._write_progress("finished" if status == "success" else status, "nothing", why=why, force=True)
        self.loggers.close(status)

    def restore(self, totals: RunningMetrics) -> None:
        """Exclude the sums of a checkpoint from the next log line: they were logged before."""
        self._sums = totals.as_dict()

    def heartbeat(self, step: int, seconds: float, doing: str = "training") -> None:
        """Write progress.json if the last write is long ago; never waits for the device."""
        self.status.step, self.status.seconds = step, seconds
        if time.monotonic() - self.last_write >= (_HEARTBEAT if doing == "training" else _MIN_INTERVAL):
            self._write_progress("running", doing)

    def log(self, step: int, seconds: float, totals: RunningMetrics, lr: float) -> None:
        """Print the means of the epoch so far; loggers and progress.json get the means since the previous log line."""
        self.status.step, self.status.seconds, self.status.lr = step, seconds, lr
        self.progress.log(totals.means(), lr)
        if not self.is_first:
            return
        sums = totals.as_dict()
        count = sums.pop("count") - self._sums.get("count", 0)
        if count > 0:  # 0 if all steps since were skipped
            self._set_terms({name: (value - self._sums.get(name, 0.0)) / count for name, value in sums.items()})
            self._logged = True
        self._sums = totals.as_dict()
        values = {f"train/{name}": value for name, value in self.status.terms.items()}
        values |= {f"speed/{name}": value for name, value in self.progress.rates().items()}
        self.loggers.metrics(values | {"lr": lr, "epochs_done": step / self.per_epoch}, step)
        self._write_progress("running", "training")

    def write_row(self, row: dict[str, float], arrays: Mapping[str, np.ndarray], last_checkpoint: str) -> None:
        """Write the row of a validation, diagnostics.npz, the health line and a line for the epoch.

        Raises:
            UhkdError: if the files cannot be written; the message contains `last_checkpoint`.
        """
        self.rows.append(row)
        if self.is_first:
            with self.folder.writing(f"the rows of step {row['step']:.0f}", last_checkpoint):
                self.folder.write_metrics(self.rows)
                self.folder.write_arrays(arrays)
        self.progress.epoch(row, self.recipe.epochs)
        self._sums = {}
        if not self.is_first:
            return
        status, step = self.status, int(row["step"])
        status.health = health(self.rows, arrays)
        if status.health:
            self.log_line(f"health: {'; '.join(status.health)}")
        status.step, status.seconds, status.lr = step, row["seconds"], row["lr"]
        means = {name: row[name] for name in ("loss", *terms_of(row)) if name in row}
        if not self._logged:
            self._set_terms(means)
        self._logged = False
        values = {f"epoch/{name}": value for name, value in means.items()}
        if step % self.recipe.log_every:  # otherwise `log` has logged them
            values |= {"lr": row["lr"], "epochs_done": row["epoch"]}
            values |= {f"speed/{name}": row[name] for name in ("images_per_second", "data_wait")}
        values |= {f"val/{k.removeprefix('val_')}": v for k, v in row.items() if k.startswith("val_")}
        values |= {f"gradient/{name}": share for name, share in gradient_shares(row).items()}
        values |= {f"factor/{name}": factor for name, factor in factors(row).items()}
        values |= {f"lead/{teacher}" if teacher else "lead": lead for teacher, lead in leads(row).items()}
        if "skipped" in row:
            values["skipped"] = row["skipped"]
        self.loggers.metrics(values, step)
        self.loggers.text("health", "; ".join(status.health) or "no problems found", step)
        self._write_progress("running", "training")

    def _set_terms(self, means: Mapping[str, float]) -> None:
        recent, self.status.terms = self.status.recent, {k: v for k, v in means.items() if math.isfinite(v)}
        for name, value in self.status.terms.items():
            recent[name] = [*recent.get(name, ()), value][-_RECENT:]

    def _write_progress(
        self,
        state: Literal["running", "stopped", "failed", "finished"],
        doing: str,
        *,
        why: str = "",
        force: bool = False,
    ) -> None:
        """Write progress.json, at most once per second unless `force`; a failed write gives one warning."""
        if not self.is_first or (not force and time.monotonic() - self.last_write < _MIN_INTERVAL):
            return
        self.last_write = time.monotonic()
        step = self.status.step
        done = step > self.start_step
        changes = {"state": state, "doing": doing, "why": why, "time": time.time()}
        changes["epoch"] = min(step // self.per_epoch + 1, self.recipe.epochs)
        changes["eta_seconds"] = self.progress.eta(step) if done else None
        changes |= self.progress.rates() if done and state == "running" else {}
        self.status = self.status.model_copy(update=changes)
        try:
            self.status.write(self.folder.path)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self.log_line(
                    f"warning: progress.json cannot be written ({error.strerror or error}); uhkd watch shows less"
                )


def write_nonfinite(setup: Setup, steps: Sequence[int]) -> None:
    """Write the images of the steps whose loss or gradient was not finite, if there are any, to nonfinite.json."""
    if steps and setup.fabric.is_global_zero:
        recipe = setup.recipe
        options = {"seed": recipe.seed, "batch_size": recipe.batch_size, "balanced": recipe.sampling == "balanced"}
        images = {step: batch_images(setup.data.train, step=step, **options).tolist() for step in steps}
        setup.folder.write_json("nonfinite.json", [{"step": step + 1, "images": images[step]} for step in steps])
