"""The files of a run."""

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
from uhkd.runs.checksums import SUMS, report_difference, write_sums
from uhkd.runs.files import check_own, check_place, leads_out, read_mapping, write_atomically, write_tensors
from uhkd.runs.lock import run_lock
from uhkd.runs.machine import environment

if TYPE_CHECKING:
    import torch

_MAX_BYTES = 2**30  # of diagnostics.npz, unpacked: spectra and predictions of ten thousand evaluations
_ENVIRONMENT = "environment.json"
ELSEWHERE = frozenset({"resume", "out", "teacher_cache", "shard_cache", "shard_cache_gb", "log", "thumbnails"}) | {
    "workers",
    "checkpoint_minutes",
}
"""Recipe fields that do not affect results and may change on resume (checkpoints contain the key of the teacher cache)."""
# files of a run that was killed while it was created
_INCOMPLETE = re.compile(r"\.lock|\.owner|environment\.json|\.(\.owner|environment\.json|recipe\.yaml)\.\d+\.tmp")


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a file of a run, which must not be a link to a file elsewhere."""
    if leads_out(path, path.parent):
        raise UhkdError(f"{path} is a link to another place: expected a file of the run itself; put a copy there")
    report_difference(path)
    return read_mapping(path)


def _yaml(mapping: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)


class RunFolder:
    """The folder of one run and its files.

    recipe.yaml (resolved; -c FOLDER --out NEW reruns it), environment.json, card.json + model.safetensors (the trained
    network), last.safetensors (the last epoch, with keep=best), metrics.csv, result.json, calibration.json (the fitted
    temperature), latency.json (ms of one image), diagnostics.npz, thumbnails.jpg, teacher_probe.safetensors, SHA256SUMS (of all
    these, once the run is finished), checkpoints/step-N/, *.png, report.html; progress.json (see `ProgressFile`); with --log:
    tensorboard/, wandb/, mlruns/, and logs.json with the ids of the logged runs.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe, self.config = self.path / "recipe.yaml", self.path / "card.json"
        self.weights, self.metrics = self.path / "model.safetensors", self.path / "metrics.csv"
        self.result, self.diagnostics = self.path / "result.json", self.path / "diagnostics.npz"
        self.last_weights = self.path / "last.safetensors"
        self.probe, self.checkpoints = self.path / "teacher_probe.safetensors", self.path / "checkpoints"
        self.thumbnails, self.environment = self.path / "thumbnails.jpg", self.path / _ENVIRONMENT
        self.calibration, self.latency = self.path / "calibration.json", self.path / "latency.json"
        self._checkpoints = Checkpoints(self.checkpoints)

    def probe_of(self, number: int | None) -> Path:
        """Return the path of a teacher's linear probe; number: of the teacher, if there are several."""
        return self.probe if number is None else self.probe.with_stem(f"{self.probe.stem}-{number}")

    def has_model(self) -> bool:
        """Return whether the folder contains a trained network."""
        return self.config.is_file() and self.weights.is_file()

    def started(self) -> bool:
        """Return whether the folder contains a run, finished or not."""
        return self.recipe.is_file()

    def check(self, recipe: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] | None = None) -> None:
        """Check, before any work, that a run of `recipe` can be written here.

        defaults: values of options that are missing in recipes of older versions.

        Raises:
            UhkdError: if the folder is not empty or, with `resume`, contains no run or one of another recipe.
        """
        check_place(self.path)
        if not resume:
            if self.path.exists() and not all(_INCOMPLETE.fullmatch(p.name) for p in self.path.iterdir()):
                hint = "add --resume to resume it, or" if self.started() else "please"
                advice = f"it is a finished run (uhkd eval {self.path}): please" if self.result.is_file() else hint
                raise UhkdError(f"{self.path} already exists and is not empty; {advice} choose another --out")
            return
        if not self.started():
            raise UhkdError(f"nothing to resume in {self.path}: there is no {self.recipe.name}; leave out --resume")
        before = yaml.safe_load(_yaml(defaults or {})) | self.read_recipe()
        now = yaml.safe_load(_yaml(recipe))
        differing = [k for k in sorted({*before, *now} - ELSEWHERE) if before.get(k) != now.get(k)]
        if (before.get("teacher_cache") is None) != (now.get("teacher_cache") is None):
            differing.append("teacher_cache")
        if differing:
            differences = ", ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differing)
            start = "--student-start" if "student" in before else "--start"
            hint = "give the options as they were, or choose another --out"
            if self.has_model():
                hint = f"to train its weights further by another recipe, start a new run: --out NEW {start} {self.path}"
            raise UhkdError(f"cannot resume {self.path} with another recipe: {differences}; {hint}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it for this process.

        Raises:
            UhkdError: if another process uses it (see `run_lock`), or its checkpoints folder is a link.
        """
        with ExitStack() as stack:
            with self.writing("the folder", "nothing in it was touched"):
                self.path.mkdir(parents=True, exist_ok=True)
                check_own(self.path, self.checkpoints.name)
                stack.enter_context(run_lock(self.path))
                for leftover in self.path.glob(".*.tmp"):  # of a killed process
                    leftover.unlink()
            yield

    @contextmanager
    def writing(self, what: str, last_checkpoint: str) -> Iterator[None]:
        """Turn an OSError (full, read-only or broken disk) into advice; other errors pass.

        what: is written. last_checkpoint: sentence on the checkpoint to resume from.

        Raises:
            UhkdError: with the system's reason.
        """
        try:
            yield
        except OSError as error:
            again = "resume with --resume" if self.started() else "start it again"
            raise UhkdError(
                f"{what} could not be written ({error.strerror or error}); {last_checkpoint}. "
                f"Make room on the disk of {self.path} or fix its permissions, then {again}"
            ) from error

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Create the folder and write recipe and environment, unless the run is resumed.

        Raises:
            UhkdError: if another run was started here since `check`.
        """
        if self.started():
            if not recipe["resume"]:
                self.check(recipe, resume=False)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(_ENVIRONMENT, environment())
        # last, because it marks the run as started
        write_atomically(self.recipe, _yaml({k: v for k, v in recipe.items() if k not in ("resume", "out")}))

    def read_recipe(self) -> dict[str, Any]:
        """Return the resolved recipe of the run, under current names."""
        return as_recorded(_read_mapping(self.recipe))

    def read_environment(self) -> dict[str, Any]:
        """Return the environment at the start of the run, when its code was loaded."""
        return _read_mapping(self.environment)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, indented, atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the checksums of the files of a run and, last, because it marks the run as finished, its result."""
        text = json.dumps(result, indent=1) + "\n"
        files = [self.recipe, self.environment, self.config, self.weights, self.last_weights, self.metrics]
        files += [self.calibration, self.latency, self.diagnostics, self.thumbnails]
        files += self.path.glob(f"{self.probe.stem}*")
        write_sums(self.path, sorted(files), {self.result.name: text.encode()})
        write_atomically(self.result, text)

    def read_result(self) -> dict[str, Any]:
        """Return the result of a finished run: command, metrics, sizes, data, environment."""
        return _read_mapping(self.result)

    def read_calibration(self) -> dict[str, Any]:
        """Return the temperature of a finished run and how it was judged; {} if none was fitted or the run is older."""
        return _read_mapping(self.calibration) if self.calibration.is_file() else {}

    def read_latency(self) -> dict[str, Any]:
        """Return the measured latency of one image, student_ms and teacher_ms; {} if the run is older."""
        return _read_mapping(self.latency) if self.latency.is_file() else {}

    def read_config(self) -> dict[str, Any]:
        """Return the model config: name, options, classes, input; see `uhkd.models.ModelConfig`."""
        return _read_mapping(self.config)

    def write_model(self, config: Mapping[str, Any], state: "Mapping[str, torch.Tensor]") -> None:
        """Write weights (tensors of any shape), then the config of the trained network: a config never lacks its weights."""
        (self.path / SUMS).unlink(missing_ok=True)  # of other weights
        write_tensors(self.weights, state)
        self.write_json(self.config.name, dict(config))

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows, one per validation; columns are in order of first appearance, missing cells are empty."""
        rows = list(rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics, text.getvalue())

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv as numbers, without empty cells."""
        if not self.metrics.is_file():
            return []
        report_difference(self.metrics)
        try:
            with self.metrics.open(newline="", encoding="utf-8") as file:
                return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:  # too long rows are lists under None
            raise UhkdError(f"{self.metrics} is damaged: expected a table of numbers ({error})") from error

    def write_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write diagnostics.npz, compressed."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType] (the stub reserves the name allow_pickle)
        write_atomically(self.diagnostics, content.getvalue())

    def read_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of diagnostics.npz; none if it does not exist yet."""
        if not self.diagnostics.is_file():
            return {}
        report_difference(self.diagnostics)
        try:
            # NumPy does not close the file if it cannot read the archive
            with self.diagnostics.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if sum(entry.file_size for entry in arrays.zip.infolist()) > _MAX_BYTES:
                    raise UhkdError(f"it unpacks to more than {_MAX_BYTES:,} bytes, which no run writes")
                return dict(arrays)
        except MemoryError:
            raise
        except Exception as error:  # a damaged archive can raise any exception
            raise UhkdError(f"{self.diagnostics} is damaged or holds more than arrays ({error})") from error

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See `Checkpoints.write`."""
        self._checkpoints.write(checkpoint)

    def read_checkpoint(self, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """See `Checkpoints.read`."""
        return self._checkpoints.read(check)

    def drop_checkpoints(self) -> None:
        """Delete all checkpoints, which a finished run does not need."""
        self._checkpoints.drop()
