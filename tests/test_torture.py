"""Trainings that are killed again and again at any moment, and end as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import uhkd
from references import torture
from references.runs import assert_equal_runs
from uhkd.commands import training
from uhkd.runs import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
TINY: dict[str, Any] = {"data": "digits", "train_limit": 100, "image_size": 16, "batch_size": 20, "device": "cpu"}
# all that a run keeps from step to step: averages, mixed images, batch statistics, parts of a batch, dropout
EVERYTHING: dict[str, Any] = {
    "student": "uhkd/resnet10",
    "student_options": {"channels": [8, 12, 16, 24], "drop_path_rate": 0.2},
    "method": "uhkd",
    "mixup": 0.4,
    "ema_decay": 0.8,
    "accumulate": 2,
    "precision": "fp32",
    "allow_weak_teacher": True,
    "checkpoint_minutes": 1e-9,
    "log_every": 3,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torture") / "teacher"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "draw", lambda folder: [])
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
    monkeypatch.setattr(training, "draw", lambda folder: [])
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
    assert len(done.stdout.splitlines()) == kills
    for life in sorted(tmp_path.glob("life-*")):
        assert_equal_runs(whole, RunFolder(life), [5 * (epoch + 1) for epoch in range(epochs)])
