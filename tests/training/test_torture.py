"""Trainings that are killed again and again at any moment, and end as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import uhkd
from references import torture, torture_cache
from references.runs import assert_equal_runs
from uhkd.cache import shards
from uhkd.runs import RunFolder
from uhkd.training import fit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
TINY: dict[str, Any] = {"data": "digits", "train_limit": 100, "image_size": 16, "batch_size": 20, "device": "cpu"}
# all that a run keeps from step to step: averages, mixed images, batch statistics, parts of a batch, dropout
EVERYTHING: dict[str, Any] = {
    "student": "uhkd/resnet10",
    "student_options": {"channels": [8, 12, 16, 24], "drop_path_rate": 0.2},
    "method": "uhkd",
    "mixup": 0.4,
    "ema_decay": 0.8,
    "grad_accum_steps": 2,
    "precision": "fp32",
    "allow_weak_teacher": True,
    "checkpoint_minutes": 1e-9,
    "log_every": 3,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torture") / "teacher"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda folder: [])
        words = TINY | {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "crop": "none", "workers": 0, "precision": "fp32"}
        uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 24]}, out=out, **words)
    return out


@pytest.mark.parametrize(
    ("kills", "epochs", "workers", "kinds"),
    [
        (3, 3, 0, ["step", "checkpoint", "rotation"]),
        pytest.param(30, 6, 0, torture.KINDS, marks=pytest.mark.slow),
        pytest.param(15, 6, 2, torture.KINDS, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_not(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, epochs: int, workers: int, kinds: Any
):
    words = TINY | EVERYTHING | {"teacher": str(teacher), "epochs": epochs, "workers": workers}
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda self: None)
    monkeypatch.setattr(fit, "draw", lambda folder: [])
    whole = uhkd.distill(**words, out=tmp_path / "whole").run
    order = {"words": words, "out": str(tmp_path), "kills": kills, "seed": 7, "kinds": list(kinds)}
    (tmp_path / "order.json").write_text(json.dumps(order))
    environ = os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(torture.__file__), str(tmp_path / "order.json")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(line.startswith("life ") for line in done.stdout.splitlines()) == kills
    for life in sorted(tmp_path.glob("life-*")):
        assert_equal_runs(whole, RunFolder(life), [5 * (epoch + 1) for epoch in range(epochs)])


@pytest.mark.parametrize(
    ("first", "more", "reading", "writing", "kinds"),
    [
        pytest.param(1, 1, 1, ["shard", "manifest"], ["record"], marks=pytest.mark.slow),
        pytest.param(8, 7, 15, torture_cache.WRITING, torture_cache.READING, marks=pytest.mark.slow),
    ],
)
def test_a_cache_that_is_killed_at_any_moment_ends_as_one_that_was_not_and_so_does_a_run_from_it(
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    more: int,
    reading: int,
    writing: Any,
    kinds: Any,
):
    """Kills while it is made, while views are added to it, and while a student learns from it."""
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda self: None)
    monkeypatch.setattr(fit, "draw", lambda folder: [])
    monkeypatch.setattr(shards, "_SHARD", 32)
    plain = {k: v for k, v in TINY.items() if k not in ("image_size", "batch_size")} | {
        "workers": 0,
        "precision": "fp32",
    }
    plain |= {"teacher": str(teacher), "mixup": 0.4, "batch_size": 20, "allow_weak_teacher": True}
    run = {k: v for k, v in EVERYTHING.items() if k != "allow_weak_teacher"} | TINY | {"epochs": 3, "workers": 0}
    caches = [tmp_path / "whole-cache", tmp_path / "cache"]
    for views in (2, 3):
        uhkd.cache(**plain, views=views, out=caches[0])
    whole = uhkd.distill(**run, teacher_cache=str(caches[0]), out=tmp_path / "whole").run
    order = {
        "stages": [
            [plain | {"views": 2, "out": str(caches[1])}, first],
            [plain | {"views": 3, "out": str(caches[1])}, more],
        ],
        "run": run | {"teacher_cache": str(caches[1])},
        "cache": str(caches[1]),
        "out": str(tmp_path),
        "kills": reading,
        "seed": 3,
        "writing": list(writing),
        "reading": list(kinds),
        "longest": 2.0,
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    environ = os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(torture_cache.__file__), str(tmp_path / "order.json")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum("killed (" in line for line in done.stdout.splitlines()) == first + more + reading
    found = [{str(f.relative_to(c)): f.read_bytes() for f in sorted(c.glob("view-*/*"))} for c in caches]
    assert found[0] == found[1] and len(found[0]) == 3 * 4
    names = [{str(f.relative_to(c)) for f in c.rglob("*") if f.is_file()} for c in caches]
    assert names[0] == names[1], "nothing is left of those that were killed"
    for life in sorted(tmp_path.glob("life-*")):
        assert_equal_runs(whole, RunFolder(life), [5, 10, 15])
        assert not list(life.rglob("*.tmp")) and not (life / ".owner").exists()
