"""One run's files under one folder."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from uhkd.errors import UhkdError
from uhkd.recipe import as_recorded
from uhkd.runs.checkpoints import Checkpoint, Checkpoints
from uhkd.runs.files import check_own, check_place, leads_out, read_mapping, write_atomically, write_tensors
from uhkd.runs.lock import run_lock
from uhkd.runs.machine import environment

if TYPE_CHECKING:
    import torch

_LARGEST = 2**30  # bytes of diagnostics: spectra and predictions of ten thousand evaluations
_ENVIRONMENT = "environment.json"
ELSEWHERE = frozenset({"resume", "out", "teacher_cache", "shard_cache", "shard_cache_gb", "log", "thumbnails"})
"""Words of a recipe that change no number: a cache may be moved (its key is in the checkpoint), another logger told."""
# what a run leaves behind that was killed while it began
_BEGINNING = re.compile(r"\.lock|\.owner|environment\.json|\.(\.owner|environment\.json|recipe\.yaml)\.\d+\.tmp")


def _own_mapping(path: Path) -> dict[str, Any]:
    """What a file of a run holds."""
    if leads_out(path, path.parent):
        raise UhkdError(f"{path} is a link to another place: expected a file of the run itself; put a copy there")
    return read_mapping(path)


def _yaml(mapping: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)


class RunFolder:
    """One run's files under one folder.

    recipe.yaml (resolved; -c FOLDER --out NEW reruns it), environment.json, card.json + model.safetensors (the trained
    network), metrics.csv, result.json, diagnostics.npz, thumbnails.jpg, teacher_probe.safetensors, checkpoints/step-N/,
    *.png, report.html; progress.json (see `ProgressFile`); what --log asked for: tensorboard/, wandb/, mlruns/, and
    logs.json, which names the runs
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe, self.card = self.path / "recipe.yaml", self.path / "card.json"
        self.weights, self.metrics = self.path / "model.safetensors", self.path / "metrics.csv"
        self.result, self.diagnostics = self.path / "result.json", self.path / "diagnostics.npz"
        self.probe, self.checkpoints = self.path / "teacher_probe.safetensors", self.path / "checkpoints"
        self.thumbnails, self.environment = self.path / "thumbnails.jpg", self.path / _ENVIRONMENT
        self._checkpoints = Checkpoints(self.checkpoints)

    def probe_of(self, number: int | None) -> Path:
        """Where the linear probe of a teacher lies; number: of one among several."""
        return self.probe if number is None else self.probe.with_stem(f"{self.probe.stem}-{number}")

    def exists(self) -> bool:
        """Whether a trained network of ours lies here."""
        return self.card.is_file() and self.weights.is_file()

    def started(self) -> bool:
        """Whether a run began here, finished or not."""
        return self.recipe.is_file()

    def check(
        self,
        recipe: Mapping[str, Any],
        *,
        resume: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """See, before any work, whether a run by `recipe` can write here.

        defaults: values of options that the recipe of an older version does not have.

        Raises:
            UhkdError: when something else lies here, or, resuming, when nothing does or the recipe differs (fields named).
        """
        check_place(self.path)
        if not resume:
            if self.path.exists() and not all(_BEGINNING.fullmatch(p.name) for p in self.path.iterdir()):
                hint = "add --resume to go on with it, or" if self.started() else "please"
                advice = f"it is a finished run (uhkd eval {self.path}): please" if self.result.is_file() else hint
                raise UhkdError(f"{self.path} already exists and is not empty; {advice} choose another --out")
            return
        if not self.started():
            raise UhkdError(f"nothing to resume in {self.path}: there is no {self.recipe.name}; leave out --resume")
        before, now = yaml.safe_load(_yaml(defaults or {})), yaml.safe_load(_yaml(recipe))
        before |= self.read_recipe()
        differing = [k for k in sorted({*before, *now} - ELSEWHERE) if before.get(k) != now.get(k)]
        if (before.get("teacher_cache") is None) != (now.get("teacher_cache") is None):
            differing.append("teacher_cache")
        if differing:
            differences = ", ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differing)
            start = "--student-start" if "student" in before else "--start"
            further = f"; to train on by other words begin a new run from its weights: --out NEW {start} {self.path}"
            raise UhkdError(
                f"cannot resume {self.path} with another recipe: {differences}{further if self.exists() else ''}"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The folder, made if need be, as this process's own while the context lasts.

        Raises:
            UhkdError: when another process works in it (see `run_lock`), or the folder of its checkpoints is a link.
        """
        with ExitStack() as stack:
            with self.writing("the folder", "nothing in it was touched"):
                self.path.mkdir(parents=True, exist_ok=True)
                check_own(self.path, self.checkpoints.name)
                stack.enter_context(run_lock(self.path))
                for leftover in self.path.glob(".*.tmp"):  # of a process that was killed: the folder is ours alone
                    leftover.unlink()
            yield

    @contextmanager
    def writing(self, what: str, last_checkpoint: str) -> Iterator[None]:
        """A disk that is full, read-only or broken while something is written here becomes advice in one line.

        what: is written. kept: says what there is to go on from.

        Raises:
            UhkdError: with the system's reason. Other errors pass.
        """
        try:
            yield
        except OSError as error:
            again = "go on with --resume" if self.started() else "start it again"
            raise UhkdError(
                f"{what} could not be written ({error.strerror or error}); {last_checkpoint}. "
                f"Make room on the disk of {self.path} or mend its permissions, then {again}"
            ) from error

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Create the folder and note recipe and environment; a run that is resumed keeps its own.

        Raises:
            UhkdError: when another run began here since `check`.
        """
        if self.started():
            if not recipe["resume"]:
                self.check(recipe, resume=False)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(_ENVIRONMENT, environment())
        # the last: it says that a run began
        write_atomically(self.recipe, _yaml({k: v for k, v in recipe.items() if k not in ("resume", "out")}))

    def read_recipe(self) -> dict[str, Any]:
        """Return the resolved recipe of the run, under current names."""
        return as_recorded(_own_mapping(self.recipe))

    def read_environment(self) -> dict[str, Any]:
        """What `environment` said when the run began: the code that trains is the code that was loaded then."""
        return _own_mapping(self.environment)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, indented, atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_result(self) -> dict[str, Any]:
        """What a finished run says of itself: verb, metrics, sizes, data, environment."""
        return _own_mapping(self.result)

    def read_card(self) -> dict[str, Any]:
        """The model card: name, options, classes, input; see `uhkd.models.ModelCard`."""
        return _own_mapping(self.card)

    def write_model(self, card: Mapping[str, Any], state: "Mapping[str, torch.Tensor]") -> None:
        """The trained network, its tensors of any shape by name: weights first, so that a card always has them."""
        write_tensors(self.weights, state)
        self.write_json(self.card.name, dict(card))

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All rows so far, one an evaluation; columns in order of first appearance, unknown cells empty."""
        rows = list(rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics, text.getvalue())

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv as numbers; empty cells left out."""
        if not self.metrics.is_file():
            return []
        try:
            with self.metrics.open(newline="", encoding="utf-8") as file:
                return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:  # longer rows come as lists, under no name
            raise UhkdError(f"{self.metrics} is damaged: expected a table of numbers ({error})") from error

    def write_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """diagnostics.npz, compressed."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType] (its stub takes allow_pickle for a name)
        write_atomically(self.diagnostics, content.getvalue())

    def read_arrays(self) -> dict[str, np.ndarray]:
        """diagnostics.npz, or nothing when it was not written yet."""
        if not self.diagnostics.is_file():
            return {}
        try:
            # opened here: of an archive that it cannot read NumPy leaves the file open
            with self.diagnostics.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if sum(entry.file_size for entry in arrays.zip.infolist()) > _LARGEST:
                    raise UhkdError(f"it unpacks to more than {_LARGEST:,} bytes, which no run writes")
                return dict(arrays)
        except MemoryError:
            raise
        except Exception as error:  # a damaged archive can fail in any way
            raise UhkdError(f"{self.diagnostics} is damaged or holds more than arrays ({error})") from error

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See `Checkpoints.write`."""
        self._checkpoints.write(checkpoint)

    def read_checkpoint(self, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """See `Checkpoints.read`."""
        return self._checkpoints.read(check)

    def drop_checkpoints(self) -> None:
        """A finished run needs none."""
        self._checkpoints.drop()
