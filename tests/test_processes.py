"""Several processes train as one would: the gradients of every method, whole runs, and what happens when one of them dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import uhkd
from references import processes
from references.runs import TIMES, assert_equal_runs
from uhkd.commands import training
from uhkd.methods import method_names
from uhkd.runs import RunFolder

ENVIRON = os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "optimizer": "sgd",
    "lr": 0.02,
}
# what a run keeps, and two parts a step; layer norms, so that no statistics of a part of the batch come in
STUDENT: dict[str, Any] = {
    "student": "uhkd/vit_micro",
    "student_options": {"embed_dim": 24, "depth": 3, "num_heads": 2},
    "method": "uhkd",
    "mixup": 0.4,
    "ema_decay": 0.8,
    "accumulate": 2,
    "allow_weak_teacher": True,
    "checkpoint_minutes": 1e-9,
}
STEPS = [5, 10, 15]
# finished runs keep their last checkpoint, for a look at the optimizer, and draw nothing, which takes longer than training
PROGRAM = """
import sys
from uhkd.__main__ import main
from uhkd.commands import training
from uhkd.runs import RunFolder
RunFolder.drop_checkpoints = lambda self: None
training.draw = lambda folder: []
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Gradients of every method by two processes, each with half of the batch."""
    out = tmp_path_factory.mktemp("processes") / "gradients.safetensors"
    command = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        str(processes.__file__),
        str(out),
        *method_names(),
    ]
    done = subprocess.run([*TORCHRUN, *command], env=ENVIRON, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(out)


@pytest.mark.parametrize("method", method_names())
def test_two_processes_have_the_gradient_of_one(by_two: dict[str, torch.Tensor], method: str):
    """Up to rounding, also of what relates the images of a batch, of the methods' own batch statistics and of CRD's banks."""
    one = processes.gradients(method, 0, 1)
    two = {name: value for name, value in by_two.items() if name.startswith(f"{method}/")}
    assert one.keys() == two.keys() and any("student" in name for name in one)
    for name, value in one.items():
        close = 1e-4 * value.float().abs().max().item() + 1e-7
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=close, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, the recipe of a student, the student by one process, and the program."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "draw", lambda folder: [])
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        words = TINY | {"model": "uhkd/resnet10", "options": {"channels": [8, 12, 16, 24]}, "epochs": 2, "crop": "none"}
        uhkd.finetune(**words, out=place / "teacher")
        words = TINY | STUDENT | {"teacher": str(place / "teacher")}
        uhkd.distill(**words, out=place / "one")
    (place / "recipe.yaml").write_text(yaml.safe_dump(words))
    (place / "program.py").write_text(PROGRAM)
    return place


def distil(place: Path, name: str, *more: str) -> subprocess.Popen[str]:
    """The student by two processes."""
    command = [*TORCHRUN, "program.py", "distill", "-c", "recipe.yaml", "--out", name, *more]
    return subprocess.Popen(command, cwd=place, env=ENVIRON, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def two(place: Path) -> RunFolder:
    process = distil(place, "two")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    assert said.count("training 0.02 M parameters") == 1 == said.count("epoch 3/3"), said  # the first speaks for all
    return RunFolder(place / "two")


def test_a_run_of_two_processes_is_that_of_one(place: Path, two: RunFolder):
    one = RunFolder(place / "one")
    assert {p.name for p in one.path.iterdir()} == {p.name for p in two.path.iterdir()}
    ours, theirs = load_file(two.weights), load_file(one.weights)
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-3, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
        )
    rows = one.read_metrics(), two.read_metrics()
    assert [row["step"] for row in rows[1]] == STEPS
    for a, b in zip(*rows, strict=True):
        assert {k: b[k] for k in a if k not in TIMES} == pytest.approx({k: a[k] for k in a if k not in TIMES}, rel=1e-2)
    first = json.loads((two.path / "environment.json").read_text())
    assert first["versions"] == json.loads((one.path / "environment.json").read_text())["versions"]


def children(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it may be gone
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                    found.append(int(folder.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes by /proc")
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_is_killed_ends_the_others_and_the_run_goes_on_to_the_bit(place: Path, two: RunFolder, rank: int):
    name = f"killed-{rank}"
    process = distil(place, name)
    checkpoints = place / name / "checkpoints"
    while not any(checkpoints.glob("step-[3-9]")) and process.poll() is None:
        time.sleep(0.02)
    both = children(process.pid)
    assert len(both) == 2
    ranks = {Path(f"/proc/{pid}/environ").read_text().split("\0LOCAL_RANK=")[1][0]: pid for pid in both}
    os.kill(ranks[str(rank)], signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert not [pid for pid in both if Path(f"/proc/{pid}").exists()]
    assert not RunFolder(place / name).result.exists(), said
    again = distil(place, name, "--resume")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0 and "going on at step" in said, said[-4000:]
    assert_equal_runs(two, RunFolder(place / name), STEPS)
