"""Run folders as plain data, whoever wrote them and however far they came: what is missing or damaged is named, never fatal."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from uhkd.recipe import DistillRecipe, FinetuneRecipe
from uhkd.runs import RunFolder, read_mapping

_DEEPEST = 6  # folders below one that was given; a comparison's runs lie three below
_TEST = "test.json"  # a comparison's accuracy on the test part
# beside the runs of a comparison: settings tried, bookkeeping, stored signals
_ASIDE = {"tune", "plan", "locks", "logs", "failed", "chosen", "caches", "checkpoints", "export"}
ABSURD = 1e12  # no loss, spectrum or error comes near it
Read = TypeVar("Read")


@dataclass(frozen=True)
class Run:
    """What one run folder says. Mappings and text come from elsewhere: any key may be missing, any value of another type.

    name: path below what all runs share. rows: of metrics.csv. test: metrics on the test part, of a comparison's run.
    problems: files that could not be read, and why.
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
    problems: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return bool(self.result)

    @cached_property
    def words(self) -> dict[str, Any]:
        """The recipe with what its words mean by default where an older version did not write them, lists for tuples."""
        kind = DistillRecipe if "student" in self.recipe else FinetuneRecipe if "model" in self.recipe else None
        said = {} if kind is None else {k: list(v) if isinstance(v, tuple) else v for k, v in kind.defaults().items()}
        return said | {**self.recipe}

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
        said = self.recipe.get("teacher") or self.result.get("teacher")
        return said if isinstance(said, str) else None

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
        said = self.card.get("classes")
        return tuple(map(str, said)) if isinstance(said, list) else ()

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
        ValueError: for a path that is no folder, or one without a run in it.
    """
    places: dict[Path, Path] = {}
    notes: list[str] = []
    for path in map(Path, given):
        if not path.is_dir():
            raise ValueError(f"no such folder: {path}; give run folders, or folders of them")
        tried: list[Path] = []
        found = list(_below(path.resolve(), tried))
        if not found:
            raise ValueError(
                f"no run in {path}: expected a folder that finetune, distill, compare or demo wrote (with recipe.yaml)"
            )
        places |= dict.fromkeys(found, path)
        if tried:
            trials = sum(len(list(_below(folder, []))) for folder in tried)
            notes.append(f"{trials} trainings that tried settings are left out; report {path / 'tune'} shows them")
    shared = Path(os.path.commonpath([place.parent if len(places) == 1 else place for place in places]))
    return [_read(place, place.relative_to(shared).as_posix()) for place in sorted(places)], notes


def _below(folder: Path, tried: list[Path], depth: int = 0) -> Iterator[Path]:
    """Run folders in a folder, itself included; links are not followed."""
    if RunFolder(folder).started() and not (folder / "cache.json").exists():
        yield folder
        return
    if depth == _DEEPEST:
        return
    compared = (folder / "compare.yaml").is_file()
    for inside in sorted(folder.iterdir()):
        if inside.is_symlink() or not inside.is_dir() or inside.name.startswith("."):
            continue
        if compared and inside.name in _ASIDE:
            tried += [inside] if inside.name == "tune" else []
            continue
        yield from _below(inside, tried, depth + 1)


def _read(path: Path, name: str) -> Run:
    folder, problems = RunFolder(path), []

    def attempt(read: Callable[[], Read], otherwise: Read, file: Path) -> Read:
        try:
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
    return Run(name, path, **found, problems=tuple(problems))


def number(found: Any, *keys: str) -> float | None:
    """The finite number under some keys of nested mappings; None where there is none."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    real = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if real and abs(found) < 1e18 else None


def text(found: Any, otherwise: str) -> str:
    """A text that is not empty, or another."""
    return found if isinstance(found, str) and found else otherwise
