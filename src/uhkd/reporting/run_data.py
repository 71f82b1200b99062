"""Run folders as plain data: missing and damaged files are recorded as problems, and never raise."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from uhkd.console import pluralize
from uhkd.errors import UhkdError
from uhkd.recipe import DistillRecipe, FinetuneRecipe
from uhkd.recipe.near_paths import check_folder
from uhkd.runs import ProgressFile, RunFolder, leads_out, read_mapping
from uhkd.runs.best_epoch import best_epoch
from uhkd.runs.checksums import differs
from uhkd.runs.comparison import TUNING, find_runs, is_tuning

_TEST = "test.json"  # accuracy on the test split, written by a comparison
_DIFFERS = "differs from its checksum in SHA256SUMS, so it was changed after the training or is damaged"
ABSURD = 1e12  # bound of losses, spectra and errors; larger values would break axes
Read = TypeVar("Read")


@dataclass(frozen=True)
class Run:
    """The content of a run folder. Mappings and text are unchecked: any key may be missing, any value of another type.

    name: path relative to the common folder of all runs. config: the model's configuration. test: metrics on the test split.
    calibration: the temperature and how it was judged. rows: of metrics.csv. failure: the error that ended the run. problems:
    files that could not be read, with the reason.
    """

    name: str
    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    latencies: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, float]] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    failure: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the training has finished."""
        return bool(self.result)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The recipe with the defaults of options that an older version did not write, as JSON types."""
        kind = DistillRecipe if "student" in self.recipe else FinetuneRecipe if "model" in self.recipe else None
        defaults = kind.defaults() if kind is not None else {}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()} | dict(self.recipe)

    @cached_property
    def student(self) -> str:
        """The name of the trained network."""
        return text(self.recipe.get("student", self.recipe.get("model", self.config.get("name"))), "unknown network")

    @cached_property
    def method(self) -> str:
        """The distillation method, or "finetune"."""
        return text(self.recipe.get("method"), "finetune" if "model" in self.recipe else "unknown method")

    @property
    def teacher(self) -> str | None:
        """The teacher's name or folder, or None."""
        teacher = self.recipe.get("teacher") or self.result.get("teacher")
        return teacher if isinstance(teacher, str) else None

    @cached_property
    def teachers(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """Names and validation metrics of several teachers; the metrics are empty before the run has finished."""
        sources = (self.result.get("teachers"), self.recipe.get("teachers"), self.recipe.get("teacher"))
        entries = next(filter(None, sources), ())
        if not isinstance(entries, list) or len(entries) < 2:
            return ()
        teachers = []
        for entry in entries:
            fields = entry if isinstance(entry, Mapping) else {"teacher": entry}
            metrics = fields.get("teacher_metrics")
            keys = metrics if isinstance(metrics, Mapping) else ()
            if name := text(fields.get("teacher"), ""):
                teachers.append((name, {k: n for k in keys if (n := number(metrics, k)) is not None}))
        return tuple(teachers)

    @cached_property
    def evaluator(self) -> tuple[str, float | None] | None:
        """The probe that measures the accuracy and the accuracy of the untrained student; None with a classifier head."""
        probe = self.result.get("probe")
        if isinstance(probe, Mapping):
            return text(probe.get("by"), "a probe"), number(probe, "start")
        kind, data = self.recipe.get("probe"), self.recipe.get("probe_data")
        kinds = {"knn": "k-NN", "linear": "linear probe"}
        return (f"{kinds.get(str(kind), 'a probe')} on {data}", None) if isinstance(data, str) else None

    @property
    def unlabelled(self) -> bool:
        """Whether it was trained without labels."""
        last = self.rows[-1].keys() if self.rows else set()
        label_free = "val_accuracy" not in last and not last.isdisjoint(
            {"val_agreement", "val_feature_error", "val_cka"}
        )
        return self.recipe.get("unlabelled") is True or self.evaluator is not None or label_free

    @property
    def data(self) -> str:
        """The fingerprint of the data, otherwise its name."""
        return text(self.result.get("data_fingerprint"), text(self.recipe.get("data"), "unknown data"))

    @property
    def data_name(self) -> str:
        """The name of the data."""
        return text(self.result.get("data"), text(self.recipe.get("data"), "unknown data"))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if they were not recorded."""
        classes = self.config.get("classes")
        return tuple(map(str, classes)) if isinstance(classes, list) else ()

    def metric(self, name: str) -> float | None:
        """Return a metric of the last evaluation, or, if it measures the weights, of those that the run kept."""
        if not self.rows or (best_epoch(self.result) and name.startswith("val_")):
            return number(self.result, "metrics", name)
        return number(self.rows[-1].get(name))

    def array(self, name: str, dimensions: int) -> np.ndarray | None:
        """Return a numeric array with this number of dimensions, or None. Values of `ABSURD` size become NaN."""
        array = self.arrays.get(name)
        if array is None or array.ndim != dimensions or array.dtype.kind not in "iuf" or not array.size:
            return None
        if array.dtype.kind != "f":
            return array
        wide = array.astype(np.float64)
        return np.where(np.abs(wide) < ABSURD, wide, np.nan)

    def latency(self, of: Literal["student", "teacher"]) -> float | None:
        """Return the latency of one image in ms, or None; runs of older versions have it in their arrays."""
        older = self.array("latency_ms" if of == "student" else "teacher_latency_ms", 1)
        return number(self.latencies, f"{of}_ms") if self.latencies or older is None else number(float(older[0]))

    def predictions(self, of: str = "val") -> np.ndarray | None:
        """Return the classes (N,) predicted for the validation images by the student ("val") or the "teacher".

        None if they were not recorded, or do not have the shape of the labels.
        """
        predictions, labels = self.array(f"{of}_prediction", 1), self.labels
        return (
            predictions
            if predictions is not None and labels is not None and predictions.shape == labels.shape
            else None
        )

    @property
    def labels(self) -> np.ndarray | None:
        """The classes (N,) of the validation images."""
        return self.array("val_label", 1)


def read_runs(given: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Return every run in some folders once, and notes on what was skipped.

    Raises:
        UhkdError: for a path that is no folder, or a folder without a run.
    """
    folders: set[Path] = set()
    notes: list[str] = []
    for path in map(Path, given):
        check_folder(path)
        root = path.resolve()
        found = set(find_runs(root, lambda e: notes.append(f"{e.filename} could not be read: {e.strerror or e}")))
        tuning = {run for run in found if is_tuning(run, root)}
        if not found - tuning:
            raise UhkdError(
                f"no run in {path}: expected a folder that finetune, distill, compare or demo wrote (with recipe.yaml)"
            )
        folders |= found - tuning
        if tuning:
            notes.append(f"{pluralize(len(tuning), 'tuning run')} left out; report {path / TUNING} shows them")
    common = Path(os.path.commonpath([folder.parent if len(folders) == 1 else folder for folder in folders]))
    return [_read(folder, folder.relative_to(common).as_posix()) for folder in sorted(folders)], notes


def _read(path: Path, name: str) -> Run:
    folder, problems = RunFolder(path), []

    def attempt(read: Callable[[], Read], otherwise: Read, file: Path) -> Read:
        try:
            if leads_out(file, path):
                raise UhkdError("is a link out of the run folder, which is not followed")
            if differs(file):
                problems.append(f"{file.name}: {_DIFFERS}")
            return read() if file.is_file() else otherwise
        except (UhkdError, OSError, MemoryError) as error:
            problems.append(f"{file.name}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            return otherwise

    content: dict[str, Any] = {
        "recipe": attempt(folder.read_recipe, {}, folder.recipe),
        "result": attempt(folder.read_result, {}, folder.result),
        "config": attempt(folder.read_config, {}, folder.config),
        "environment": attempt(folder.read_environment, {}, folder.environment),
        "test": attempt(lambda: read_mapping(path / _TEST), {}, path / _TEST),
        "calibration": attempt(folder.read_calibration, {}, folder.calibration),
        "latencies": attempt(folder.read_latency, {}, folder.latency),
        "rows": attempt(folder.read_metrics, [], folder.metrics),
        "arrays": attempt(folder.read_arrays, {}, folder.diagnostics),
    }
    if differs(folder.weights):
        problems.append(f"{folder.weights.name}: {_DIFFERS}")
    failure = None
    if not content["result"]:
        progress = attempt(lambda: ProgressFile.read(path), None, path / "progress.json")
        if progress is not None and progress.state == "failed":
            failure = progress.why or "reason not recorded"
    return Run(name, path, **content, failure=failure, problems=tuple(problems))


def number(value: Any, *keys: str) -> float | None:
    """Return the finite number under some keys of nested mappings, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real and abs(value) < 1e18 else None


def text(value: Any, otherwise: str) -> str:
    """Return a value if it is a non-empty string, otherwise a default."""
    return value if isinstance(value, str) and value else otherwise
