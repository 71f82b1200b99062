"""The run folder: every file name, how each is written (atomically) and read. Nothing read here can execute code."""

import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor

_PACKAGES = ("uhkd", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "safetensors")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it: a reader sees the old or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """Versions, commit, hardware and thread settings of this process: what a number must travel with."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


@cache
def _commit() -> str | None:
    """Commit of the source tree this package runs from, with '+changes' when files differ; None outside of a checkout.

    Asked once a process: later the tree may hold other code than that which was loaded.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{git('rev-parse', '--short', 'HEAD')}{'+changes' if changed else ''}" or None


def _yaml(mapping: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Checkpoint:
    """What exact resume needs: module and FTM tensors, the optimizer's state, and plain facts such as the step."""

    step: int
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    facts: dict[str, Any]


class RunFolder:
    """One run's files under one folder.

    recipe.yaml (resolved; -c FOLDER --out NEW reruns it), environment.json, card.json + model.safetensors (the trained
    network), metrics.csv, result.json, diagnostics.npz, teacher_probe.safetensors, checkpoints/step-N/, *.png
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe, self.card = self.path / "recipe.yaml", self.path / "card.json"
        self.weights, self.metrics = self.path / "model.safetensors", self.path / "metrics.csv"
        self.result, self.diagnostics = self.path / "result.json", self.path / "diagnostics.npz"
        self.probe, self.checkpoints = self.path / "teacher_probe.safetensors", self.path / "checkpoints"

    def exists(self) -> bool:
        """Whether a trained network of ours lies here."""
        return self.card.is_file() and self.weights.is_file()

    def started(self) -> bool:
        """Whether a run began here, finished or not."""
        return self.recipe.is_file()

    def check(self, recipe: Mapping[str, Any], *, resume: bool) -> None:
        """See, before any work, whether a run by `recipe` can write here.

        Raises:
            ValueError: when something else lies here, or, resuming, when nothing does or the recipe differs (fields named).
        """
        if not resume:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                advice = "add --resume to go on with it, or" if self.started() else "please"
                raise ValueError(f"{self.path} already exists and is not empty; {advice} choose another --out")
            return
        if not self.started():
            raise ValueError(f"nothing to resume in {self.path}: there is no {self.recipe.name}; leave out --resume")
        before, now = self.read_recipe(), yaml.safe_load(_yaml(recipe))
        elsewhere = {"resume", "out", "teacher_cache"}  # a cache may be moved: its key is in the checkpoint
        differing = [k for k in sorted({*before, *now} - elsewhere) if before.get(k) != now.get(k)]
        if (before.get("teacher_cache") is None) != (now.get("teacher_cache") is None):
            differing.append("teacher_cache")
        if differing:
            said = ", ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differing)
            raise ValueError(f"cannot resume {self.path} with another recipe: {said}")

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Create the folder and note recipe and environment; a run that is resumed keeps its own."""
        if not self.started():
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("environment.json", environment())
            write_atomically(self.recipe, _yaml({k: v for k, v in recipe.items() if k not in ("resume", "out")}))

    def read_recipe(self) -> dict[str, Any]:
        """The resolved recipe this folder was made with."""
        return yaml.safe_load(self.recipe.read_text())

    def read_environment(self) -> dict[str, Any]:
        """What `environment` said when the run began: the code that trains is the code that was loaded then."""
        return json.loads((self.path / "environment.json").read_text())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, indented, atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_result(self) -> dict[str, Any]:
        """What a finished run says of itself: verb, metrics, sizes, data, environment."""
        return json.loads(self.result.read_text())

    def read_card(self) -> dict[str, Any]:
        """The model card: name, options, classes, input; see `uhkd.models.ModelCard`."""
        return json.loads(self.card.read_text())

    def write_model(self, card: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """The trained network: weights first, so that a card always has them."""
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
        with self.metrics.open(newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def write_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """diagnostics.npz, compressed."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType] (its stub takes allow_pickle for a name)
        write_atomically(self.diagnostics, content.getvalue())

    def read_arrays(self) -> dict[str, np.ndarray]:
        """diagnostics.npz, or nothing when it was not written yet."""
        if not self.diagnostics.is_file():
            return {}
        with np.load(self.diagnostics, allow_pickle=False) as arrays:
            return dict(arrays)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write whole under a temporary name, rename, and only then drop older ones."""
        self.checkpoints.mkdir(exist_ok=True)
        temporary = self.checkpoints / f".step-{checkpoint.step}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_tensors(temporary / "tensors.safetensors", checkpoint.tensors)
        content = io.BytesIO()
        torch.save(checkpoint.optimizer, content)
        write_atomically(temporary / "optimizer.pt", content.getvalue())
        facts = {"step": checkpoint.step, **checkpoint.facts}
        write_atomically(temporary / "facts.json", json.dumps(facts, indent=1) + "\n")
        final = self.checkpoints / f"step-{checkpoint.step}"
        if final.exists():  # a folder cannot be renamed onto one: the old one steps aside, it is not deleted before
            final.replace(aside := temporary.with_suffix(".old"))
            temporary.replace(final)
            shutil.rmtree(aside)
        else:
            temporary.replace(final)
        for step, folder in self._whole_checkpoints():
            if step < checkpoint.step:
                shutil.rmtree(folder)

    def read_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None when there is none.

        Raises:
            ValueError: when its files are damaged, or hold more than tensors and plain data (nothing is executed).
        """
        whole = self._whole_checkpoints()
        if not whole:
            return None
        step, folder = whole[-1]
        try:
            facts = json.loads((folder / "facts.json").read_text())
            optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            return Checkpoint(step, load_file(folder / "tensors.safetensors"), optimizer, facts)
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(
                f"the checkpoint {folder} is damaged or holds more than tensors and plain data, so it was not read; "
                "delete it, or start anew with another --out"
            ) from error

    def drop_checkpoints(self) -> None:
        """A finished run needs none."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _whole_checkpoints(self) -> list[tuple[int, Path]]:
        named = ((folder.name.removeprefix("step-"), folder) for folder in self.checkpoints.glob("step-*"))
        return sorted((int(number), folder) for number, folder in named if number.isdecimal())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, atomically; tensors may be on any device and share storage."""
    # not by save_file: that makes a file which other users of the machine may not read
    write_atomically(path, save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}))
