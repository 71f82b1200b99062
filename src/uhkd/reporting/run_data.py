"""Run folders as plain data, whoever wrote them and however far they came: what is missing or damaged is named, never fatal."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from uhkd.errors import UhkdError
from uhkd.recipe import DistillRecipe, FinetuneRecipe
from uhkd.runs import ProgressFile, RunFolder, leads_out, read_mapping

_DEEPEST = 6  # folders below one that was given; a comparison's runs lie three below
_TEST = "test.json"  # a comparison's accuracy on the test part
# beside the runs of a comparison: settings tried, bookkeeping, stored signals
_SKIPPED = {"tune", "plan", "locks", "logs", "failed", "chosen", "caches", "checkpoints", "export"}
ABSURD = 1e12  # no loss, spectrum or error comes near it
Read = TypeVar("Read")


@dataclass(frozen=True)
class Run:
    """What one run folder says. Mappings and text come from elsewhere: any key may be missing, any value of another type.

    name: path below what all runs share. rows: of metrics.csv. test: metrics on the test part, of a comparison's run.
    failure: what ended it, of one that failed. problems: files that could not be read, and why.
    """

    name: str
    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, float]] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    failure: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return bool(self.result)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The recipe with what its words mean by default where an older version did not write them, lists for tuples."""
        kind = DistillRecipe if "student" in self.recipe else FinetuneRecipe if "model" in self.recipe else None
        classes = (
            {} if kind is None else {k: list(v) if isinstance(v, tuple) else v for k, v in kind.defaults().items()}
        )
        return classes | dict(self.recipe)

    @cached_property
    def student(self) -> str:
        """The network that was trained."""
        return text(self.recipe.get("student", self.recipe.get("model", self.card.get("name"))), "unknown network")

    @cached_property
    def method(self) -> str:
        """The distillation method, or finetune."""
        return text(self.recipe.get("method"), "finetune" if "model" in self.recipe else "unknown method")

    @property
    def teacher(self) -> str | None:
        """The teacher's name or folder; None where there is none."""
        classes = self.recipe.get("teacher") or self.result.get("teacher")
        return classes if isinstance(classes, str) else None

    @cached_property
    def teachers(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """Names and validation metrics of its teachers, where there are several; metrics are noted at its end."""
        classes = next(
            filter(None, (self.result.get("teachers"), self.recipe.get("teachers"), self.recipe.get("teacher"))), ()
        )
        each = (
            [one if isinstance(one, Mapping) else {"teacher": one} for one in classes]
            if isinstance(classes, list)
            else []
        )
        metrics = (one.get("teacher_metrics") for one in each)
        known = [
            {k: n for k in m if (n := number(m, k)) is not None} if isinstance(m, Mapping) else {} for m in metrics
        ]
        return tuple(
            (name, own)
            for one, own in zip(each, known, strict=True)
            if (name := text(one.get("teacher"), "")) and len(each) > 1
        )

    @cached_property
    def evaluator(self) -> tuple[str, float | None] | None:
        """What its accuracy is by, where no head of its own has it, and that of the student before its first step."""
        probed = self.result.get("probe")
        if isinstance(probed, Mapping):
            return text(probed.get("by"), "a probe"), number(probed, "start")
        probe, images = self.recipe.get("probe"), self.recipe.get("probe_data")
        kinds = {"knn": "k-NN", "linear": "linear probe"}
        return (f"{kinds.get(str(probe), 'a probe')} on {images}", None) if isinstance(images, str) else None

    @property
    def unlabelled(self) -> bool:
        """Whether it learned without labels."""
        alike = {"val_agreement", "val_feature_error", "val_cka"}
        only = bool(self.rows) and "val_accuracy" not in self.rows[-1] and bool(alike & self.rows[-1].keys())
        return self.recipe.get("unlabelled") is True or self.evaluator is not None or only

    @property
    def data(self) -> str:
        """The data's name and what it consisted of."""
        return text(self.result.get("data_fingerprint"), text(self.recipe.get("data"), "unknown data"))

    @property
    def data_name(self) -> str:
        """The data's name."""
        return text(self.result.get("data"), text(self.recipe.get("data"), "unknown data"))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where they are not known."""
        classes = self.card.get("classes")
        return tuple(map(str, classes)) if isinstance(classes, list) else ()

    def metric(self, name: str) -> float | None:
        """A metric of the validation part after the last evaluation."""
        return number(self.rows[-1].get(name)) if self.rows else number(self.result, "metrics", name)

    def array(self, name: str, dimensions: int) -> np.ndarray | None:
        """An array of numbers with so many dimensions, absurd ones as NaN; None where it was not recorded or is another."""
        found = self.arrays.get(name)
        if found is None or found.ndim != dimensions or found.dtype.kind not in "iuf" or not found.size:
            return None
        if found.dtype.kind != "f":
            return found
        wide = found.astype(np.float64)
        # no axis can hold the largest floats
        return np.where(np.abs(wide) < ABSURD, wide, np.nan)

    def predictions(self, of: str = "val") -> np.ndarray | None:
        """Classes named for the validation images, (N,), by the student (val) or the teacher; None where they do not fit the
        labels."""
        found, labels = self.array(f"{of}_prediction", 1), self.labels
        return found if found is not None and labels is not None and found.shape == labels.shape else None

    @property
    def labels(self) -> np.ndarray | None:
        """Classes of the validation images, (N,)."""
        return self.array("val_label", 1)


def read_runs(given: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Every run in the folders given, each once, and lines on what was passed over.

    Raises:
        UhkdError: for a path that is no folder, or one without a run in it.
    """
    places: dict[Path, Path] = {}
    notes: list[str] = []
    for path in map(Path, given):
        if not path.is_dir():
            raise UhkdError(f"no such folder: {path}; give run folders, or folders of them")
        tried: list[Path] = []
        found = list(_below(path.resolve(), tried, notes))
        if not found:
            raise UhkdError(
                f"no run in {path}: expected a folder that finetune, distill, compare or demo wrote (with recipe.yaml)"
            )
        places |= dict.fromkeys(found, path)
        if tried:
            trials = sum(len(list(_below(folder, [], notes))) for folder in tried)
            notes.append(f"{trials} trainings that tried settings are left out; report {path / 'tune'} shows them")
    shared = Path(os.path.commonpath([place.parent if len(places) == 1 else place for place in places]))
    return [_read(place, place.relative_to(shared).as_posix()) for place in sorted(places)], notes


def _below(folder: Path, tried: list[Path], notes: list[str], depth: int = 0) -> Iterator[Path]:
    """Run folders in a folder, itself included; links are not followed, and what cannot be looked into is noted."""
    try:
        unfinished = RunFolder(folder).started() and not (folder / "cache.json").exists()
        compared = (folder / "compare.yaml").is_file()
        below = (
            []
            if unfinished or depth == _DEEPEST
            else sorted(p for p in folder.iterdir() if not p.is_symlink() and p.is_dir())
        )
    except OSError as error:
        notes.append(f"{folder} could not be looked into: {error.strerror or error}")
        return
    if unfinished:
        yield folder
    for inside in below:
        if inside.name.startswith("."):
            continue
        if compared and inside.name in _SKIPPED:
            tried += [inside] if inside.name == "tune" else []
            continue
        yield from _below(inside, tried, notes, depth + 1)


def _read(path: Path, name: str) -> Run:
    folder, problems = RunFolder(path), []

    def attempt(read: Callable[[], Read], otherwise: Read, file: Path) -> Read:
        try:
            if leads_out(file, path):
                raise UhkdError("is a link out of the run's folder, which is not followed")
            return read() if file.is_file() else otherwise
        except (ValueError, OSError, MemoryError) as error:
            problems.append(f"{file.name}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            return otherwise

    found: dict[str, Any] = {
        "recipe": attempt(folder.read_recipe, {}, folder.recipe),
        "result": attempt(folder.read_result, {}, folder.result),
        "card": attempt(folder.read_card, {}, folder.card),
        "environment": attempt(folder.read_environment, {}, folder.environment),
        "test": attempt(lambda: read_mapping(path / _TEST), {}, path / _TEST),
        "rows": attempt(folder.read_metrics, [], folder.metrics),
        "arrays": attempt(folder.read_arrays, {}, folder.diagnostics),
    }
    progress = attempt(lambda: ProgressFile.read(path), None, path / "progress.json") if not found["result"] else None
    failure = (
        (progress.why or "for a reason not noted") if progress is not None and progress.state == "failed" else None
    )
    return Run(name, path, **found, failure=failure, problems=tuple(problems))


def number(found: Any, *keys: str) -> float | None:
    """The finite number under some keys of nested mappings; None where there is none."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    real = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if real and abs(found) < 1e18 else None


def text(found: Any, otherwise: str) -> str:
    """A text that is not empty, or another."""
    return found if isinstance(found, str) and found else otherwise
