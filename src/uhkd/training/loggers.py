"""Logging to TensorBoard, W&B and MLflow by Lightning's loggers; a logger that fails or hangs does not affect the training."""

import contextlib
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import yaml

from uhkd.errors import UhkdError
from uhkd.runs import RunFolder, check_own, read_mapping

_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb", "pytorch_lightning"),
    "mlflow": ("mlflow", "pytorch_lightning"),
}
_FOLDERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlruns"}  # in the run folder
_IDS = "logs.json"  # ids of this run at W&B and MLflow
_PROJECT = "uhkd"
_QUEUE_SIZE = 1000  # calls that may wait for a server
_CLOSE_TIMEOUT = 60.0  # seconds to wait at the end for calls that are still queued

Status = Literal["success", "failed", "stopped"]


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of the loggers are installed.

    Raises:
        UhkdError: if one is missing, with its name and the extra that installs it.
    """
    for name in names:
        for package in _PACKAGES[name]:
            if find_spec(package) is None:
                raise UhkdError(f"log {name}: the package {package} is missing: pip install 'uhkd[{name}]'")


class _Backend:
    """An open logger of Lightning; every call may raise any exception."""

    logger: Any

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(values), step)

    def text(self, name: str, text: str, step: int) -> None:
        raise NotImplementedError

    def close(self, status: Status) -> None:
        self.logger.finalize(status)


class _TensorBoard(_Backend):
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], start_step: int, ids: dict[str, str]) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        # steps after the last checkpoint of a killed run are logged again: TensorBoard hides the first ones
        exists = (folder.path / "tensorboard").is_dir()
        purge: dict[str, Any] = {"purge_step": start_step + 1} if exists else {}
        self.logger = TensorBoardLogger(folder.path, "tensorboard", "", **purge)
        if not exists:
            self.logger.log_hyperparams(dict(options), {"epochs_done": 0.0}, step=0)
            self.text("recipe", yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True), 0)
        self.logger.save()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        self.logger.save()

    def text(self, name: str, text: str, step: int) -> None:
        # TensorBoard renders Markdown: indented text is shown verbatim
        self.logger.experiment.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)


class _WandB(_Backend):
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], start_step: int, ids: dict[str, str]) -> None:
        from pytorch_lightning.loggers import WandbLogger

        ids.setdefault("wandb", uuid.uuid4().hex[:8])
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self.logger = WandbLogger(folder.path.name, str(folder.path), id=ids["wandb"], project=project)
        self.logger.log_hyperparams(dict(options))

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.log({name: text, "trainer/global_step": step})

    def close(self, status: Status) -> None:
        self.logger.experiment.finish(exit_code=int(status != "success"))


class _MLflow(_Backend):
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], start_step: int, ids: dict[str, str]) -> None:
        from pytorch_lightning.loggers import MLFlowLogger

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:  # a folder, because a database needs more than the small package of MLflow
            uri = (folder.path / "mlruns").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        self.logger = MLFlowLogger(name, folder.path.name, uri, run_id=ids.get("mlflow"))
        self.run = str(self.logger.run_id)
        if "mlflow" in ids:
            self.logger.experiment.update_run(self.run, status="RUNNING")
        else:
            self.logger.log_hyperparams(dict(options))
        ids["mlflow"] = self.run

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.set_tag(self.run, name, text)

    def close(self, status: Status) -> None:
        self.logger.finalize("KILLED" if status == "stopped" else status)


_BACKENDS: dict[str, Callable[[RunFolder, Mapping[str, Any], int, dict[str, str]], _Backend]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}


class _LoggerThread(threading.Thread):
    """Calls one logger in its own thread; after the first call that fails, no more calls are made."""

    def __init__(self, name: str, backend: _Backend) -> None:
        super().__init__(name=name, daemon=True)
        self.backend = backend
        self.failure: str | None = None
        self.calls: queue.Queue[Callable[[_Backend], None] | None] = queue.Queue(_QUEUE_SIZE)
        self.start()

    def run(self) -> None:
        while self.failure is None and (call := self.calls.get()) is not None:
            try:
                call(self.backend)
            except BaseException as error:  # an unreachable server, a full disk, a client that exits
                self.failure = _first_line(error)

    def submit(self, call: Callable[[_Backend], None]) -> None:
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self.failure = self.failure or f"it is {_QUEUE_SIZE} messages behind"

    def close(self, status: Status, timeout: float) -> None:
        self.submit(lambda backend: backend.close(status))
        with contextlib.suppress(queue.Full):
            self.calls.put_nowait(None)
        self.join(timeout)
        if self.is_alive():
            self.failure = self.failure or f"it took longer than {timeout:.0f} s to end"


class Loggers:
    """The open loggers of a training; without names nothing is imported and every call does nothing.

    Args:
        names: of tensorboard, wandb, mlflow.
        folder: run folder, in which TensorBoard and MLflow store their files and W&B its copies.
        options: the resolved recipe, logged as hyperparameters.
        start_step: step of the checkpoint from which the run resumes; 0 for a new run.
        log_line: prints one warning per logger that fails.

    Raises:
        UhkdError: if a logger cannot be opened in a new run. A resumed run, which a queue may have started, continues without it.
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
        check_own(folder.path, *(_FOLDERS[name] for name in names))
        path = folder.path / _IDS
        ids = {k: str(v) for k, v in read_mapping(path).items()} if path.is_file() else {}
        options = {k: v for k, v in options.items() if k not in ("resume", "out", "log")}
        for name in names:
            try:
                self._threads.append(_LoggerThread(name, _BACKENDS[name](folder, options, start_step, ids)))
            except Exception as error:
                why = _first_line(error)
                if not start_step:
                    self.close("failed")
                    raise UhkdError(
                        f"log {name} could not be opened ({why}); nothing was trained. Fix it, or leave {name} out of --log, "
                        "and start the same command again with --resume"
                    ) from error
                log_line(f"warning: log {name} could not be opened, the training continues without it: {why}")
        if ids:
            with contextlib.suppress(OSError):
                folder.write_json(_IDS, ids)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name for a step (counted from 1)."""
        copied = dict(values)
        self._submit(lambda backend: backend.metrics(copied, step))

    def text(self, name: str, text: str, step: int) -> None:
        """Log a text for a step."""
        self._submit(lambda backend: backend.text(name, text, step))

    def close(self, status: Status) -> None:
        """Log how the training ended and wait for queued calls, at most `_CLOSE_TIMEOUT` seconds per logger."""
        for thread in self._threads:
            thread.close(status, _CLOSE_TIMEOUT)
        self._drop_failed()
        self._threads = []

    def _submit(self, call: Callable[[_Backend], None]) -> None:
        for thread in self._threads:
            thread.submit(call)
        self._drop_failed()

    def _drop_failed(self) -> None:
        for thread in [thread for thread in self._threads if thread.failure is not None]:
            self._threads.remove(thread)
            self.log_line(f"warning: log {thread.name} failed, the training continues without it: {thread.failure}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
