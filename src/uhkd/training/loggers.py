"""What a training tells TensorBoard, W&B and MLflow, if asked to; none of them can stop it, slow it down or change it."""

import contextlib
import os
import queue
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import yaml

from uhkd.errors import UhkdError
from uhkd.runs import RunFolder, check_own, read_mapping

_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb", "pytorch_lightning"),
    "mlflow": ("mlflow", "pytorch_lightning"),
}
_PLACES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlruns",)}  # in the run folder
_IDS = "logs.json"  # which run of W&B and of MLflow this folder is
_PROJECT = "uhkd"
_AHEAD = 1000  # things to be told that may wait for a server
_PATIENCE = 60.0  # seconds that a training waits at its end for what was not told yet

Ending = str  # "success", "failed" or "stopped"


def check_loggers(names: Sequence[str]) -> None:
    """See that the packages of the loggers asked for are there.

    Raises:
        UhkdError: naming the first that is not, and the extra that brings it.
    """
    for name in names:
        for package in _PACKAGES[name]:
            if find_spec(package) is None:
                raise UhkdError(f"log {name}: the package {package} is missing: pip install 'uhkd[{name}]'")


class _Backend(ABC):
    """One logger, open; any call may raise anything."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""

    @abstractmethod
    def text(self, name: str, text: str, step: int) -> None:
        """A sentence of a step."""

    @abstractmethod
    def close(self, ending: Ending) -> None:
        """The last call."""


class _TensorBoard(_Backend):
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], start_step: int, ids: dict[str, str]) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        # what a killed run told after its last checkpoint is told again: the first telling is hidden
        again = (folder.path / "tensorboard").is_dir()
        purge: dict[str, Any] = {"purge_step": start_step + 1} if again else {}
        self.logger = TensorBoardLogger(folder.path, "tensorboard", "", **purge)
        if not again:
            self.logger.log_hyperparams(dict(options), {"epochs_done": 0.0}, step=0)
            self.text("recipe", yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True), 0)
        self.logger.save()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(values), step)
        self.logger.save()

    def text(self, name: str, text: str, step: int) -> None:
        # read as Markdown: by its indent it stays as it is
        self.logger.experiment.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self, ending: Ending) -> None:
        self.logger.finalize(ending)


class _WandB(_Backend):
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], start_step: int, ids: dict[str, str]) -> None:
        from pytorch_lightning.loggers import WandbLogger

        ids.setdefault("wandb", uuid.uuid4().hex[:8])
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self.logger = WandbLogger(folder.path.name, str(folder.path), id=ids["wandb"], project=project)
        self.logger.log_hyperparams(dict(options))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(values), step)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.log({name: text, "trainer/global_step": step})

    def close(self, ending: Ending) -> None:
        self.logger.experiment.finish(exit_code=int(ending != "success"))


class _MLflow(_Backend):
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], start_step: int, ids: dict[str, str]) -> None:
        from pytorch_lightning.loggers import MLFlowLogger

        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:  # files: a database would need more than the small package of MLflow
            place = (folder.path / "mlruns").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        self.logger = MLFlowLogger(name, folder.path.name, place, run_id=ids.get("mlflow"))
        self.run = str(self.logger.run_id)
        if "mlflow" in ids:
            self.logger.experiment.update_run(self.run, status="RUNNING")
        else:
            self.logger.log_hyperparams(dict(options))
        ids["mlflow"] = self.run

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(values), step)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.set_tag(self.run, name, text)

    def close(self, ending: Ending) -> None:
        self.logger.finalize("KILLED" if ending == "stopped" else ending)


_Opening = Callable[[RunFolder, Mapping[str, Any], int, dict[str, str]], _Backend]
_SINKS: dict[str, _Opening] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}


class _LoggerThread:
    """Tells one logger, in a thread of its own, what it is handed; after the first thing that fails, nothing more."""

    def __init__(self, name: str, sink: _Backend) -> None:
        self.name, self.sink, self.why = name, sink, None
        self.reported = False  # of the failure
        self.waiting: queue.Queue[Callable[[_Backend], None] | None] = queue.Queue(_AHEAD)
        self.thread = threading.Thread(target=self._deliver, name=f"log {name}", daemon=True)
        self.thread.start()

    def _deliver(self) -> None:
        while (message := self.waiting.get()) is not None:
            if self.why is None:
                try:
                    message(self.sink)
                except BaseException as error:  # a server that is away, a full disk, a client that exits: in any way
                    self.why = f"{type(error).__name__}: {error}".splitlines()[0]

    def hand(self, message: Callable[[_Backend], None]) -> None:
        try:
            self.waiting.put_nowait(message)
        except queue.Full:
            self.why = self.why or f"it is {_AHEAD} messages behind"

    def end(self, ending: Ending, patience: float) -> None:
        self.hand(lambda sink: sink.close(ending))
        with contextlib.suppress(queue.Full):
            self.waiting.put_nowait(None)
        self.thread.join(patience)
        if self.thread.is_alive():
            self.why = self.why or f"it took longer than {patience:.0f} s to end"


class Loggers:
    """The loggers asked for, open; with none asked for, nothing is imported and every call does nothing.

    Args:
        names: of tensorboard, wandb, mlflow.
        folder: the run's, where TensorBoard's and MLflow's files and W&B's copies lie.
        words: the resolved recipe, their hyperparameters.
        begun: step of the checkpoint by which the run, and its log, goes on; 0 where it begins.
        say: told once of each logger that fails.

    Raises:
        UhkdError: when a logger cannot be opened where the run begins. One that goes on, which a queue may have started, does
            so without.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: RunFolder,
        options: Mapping[str, Any],
        start_step: int,
        log_line: Callable[[str], None],
    ) -> None:
        self.log_line = log_line
        self._threads: list[_LoggerThread] = []
        if not names:
            return
        check_own(folder.path, *(name for place in names for name in _PLACES[place]))
        place = folder.path / _IDS
        ids = {k: str(v) for k, v in read_mapping(place).items()} if place.is_file() else {}
        options = {k: v for k, v in options.items() if k not in ("resume", "out", "log")}
        for name in names:
            try:
                self._threads.append(_LoggerThread(name, _SINKS[name](folder, options, start_step, ids)))
            except Exception as error:  # what it raises is its own affair
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                if not start_step:
                    self.close("failed")
                    raise UhkdError(
                        f"log {name} could not be opened ({why}); nothing was trained. Mend it, or leave {name} out of --log, "
                        "and start the same command again with --resume"
                    ) from error
                log_line(f"warning: log {name} could not be opened, the training goes on without it: {why}")
        if ids:
            with contextlib.suppress(OSError):
                folder.write_json(_IDS, ids)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, of a step (counted from 1)."""
        own = dict(values)
        self._hand(lambda sink: sink.metrics(own, step))

    def text(self, name: str, text: str, step: int) -> None:
        """A sentence under a name."""
        self._hand(lambda sink: sink.text(name, text, step))

    def close(self, ending: Ending) -> None:
        """Tell them how the training ended ("success", "failed", "stopped") and wait, not for ever, until all is told."""
        for thread in self._threads:
            thread.end(ending, _PATIENCE)
        self._warn()
        self._threads = []

    def _hand(self, message: Callable[[_Backend], None]) -> None:
        for thread in self._threads:
            if thread.why is None:
                thread.hand(message)
        self._warn()

    def _warn(self) -> None:
        for thread in self._threads:
            if thread.why is not None and not thread.reported:
                thread.reported = True
                self.log_line(f"warning: log {thread.name} failed, the training goes on without it: {thread.why}")
