"""The example for SLURM as it is, the scheduler's commands played by small ones: noticed, requeued, gone on, the same."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import uhkd
from references.nodes import ENVIRON, children
from references.runs import TIMES
from uhkd.runs import RunFolder
from uhkd.training import fit

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
pytestmark = pytest.mark.skipif(
    not shutil.which("bash") or not hasattr(signal, "SIGUSR1"), reason="a script for bash and its signals"
)
# srun starts its words once a node, and all of them are the step; scancel signals the step and not the job's shell
COMMANDS = {
    "srun": """
        : > "$PLACE/step"
        for node in $(seq "$SLURM_NNODES"); do
            SLURM_NODEID=$((node - 1)) "$@" & echo $! >> "$PLACE/step"
        done
        code=0
        for task in $(cat "$PLACE/step"); do wait "$task" || code=$?; done
        exit "$code"
    """,
    "scancel": """
        [ "$1 $2" = "--signal=TERM $SLURM_JOB_ID" ] || exit 64
        echo "$@" >> "$PLACE/cancelled"
        kill -TERM $(cat "$PLACE/step")
    """,
    "scontrol": """
        if [ "$1" = requeue ]; then echo "$2" >> "$PLACE/requeued"; exit; fi
        [ "$1 $2 $3" = "show hostnames node[1-2]" ] && printf '127.0.0.1\\nnode2\\n'
    """,
}
FLAGS = "--data digits --train-limit 100 --image-size 16 --batch-size 20 --device cpu --precision fp32 --workers 0"
WORDS: dict[str, Any] = {
    "model": "uhkd/vit_micro",
    "options": {"embed_dim": 24, "depth": 3, "num_heads": 2},
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 40,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
}
OPTIONS = ["--options", "embed_dim=24", "depth=3", "num_heads=2"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, body in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{body}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def submit(place: Path, nodes: int, *words: str) -> subprocess.Popen[str]:
    scheduler = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PLACE": str(place),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),  # its port is made of it
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    # an interactive shell's settings, or those of a real job around this test, are not the script's
    environ = {k: v for k, v in ENVIRON.items() if not k.startswith(("SLURM_", "BASH_"))} | scheduler
    return subprocess.Popen(["bash", str(SCRIPT), *words], env=environ, cwd=place, stderr=subprocess.PIPE, text=True)


def training_of() -> list[str]:
    words = ["finetune", "--model", WORDS["model"], *OPTIONS, *FLAGS.split(), "--epochs", str(WORDS["epochs"])]
    return ["my run", *words]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_notice_saves_requeues_and_goes_on_to_the_bit(place: Path, monkeypatch: pytest.MonkeyPatch, nodes: int):
    run = RunFolder(place / "my run")
    job = submit(place, nodes, *training_of())
    until = time.monotonic() + 120
    while not run.metrics.exists() and job.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)  # to the script alone, as `--signal=B:` sends it
    _, said = job.communicate(timeout=120)
    assert job.returncode not in (0, 2), said
    assert "stopped by SIGTERM after step" in said and "back into the queue" in said, said[-3000:]
    assert (place / "requeued").read_text() == f"{os.getpid()}\n" and (place / "cancelled").exists()
    assert any(run.checkpoints.glob("step-*")) and not run.result.exists() and not children(job.pid)

    again = submit(place, nodes, *training_of())
    _, said = again.communicate(timeout=240)
    assert again.returncode == 0 and "resuming at step" in said, said[-3000:]
    assert (place / "requeued").read_text() == f"{os.getpid()}\n", "what is finished does not go back"
    rows = run.read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, WORDS["epochs"] + 1))
    if nodes == 1:
        monkeypatch.setattr(fit, "draw", lambda folder: [])
        whole = uhkd.finetune(**WORDS, out=place / "whole").run
    else:
        whole = RunFolder(place / "undisturbed")
        undisturbed = submit(place, nodes, *["undisturbed", *training_of()[1:]])
        _, said = undisturbed.communicate(timeout=240)
        assert undisturbed.returncode == 0, said[-3000:]
    assert whole.weights.read_bytes() == run.weights.read_bytes()
    kept = [[{k: v for k, v in row.items() if k not in TIMES} for row in one.read_metrics()] for one in (whole, run)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (138, True), (143, True)])
def test_only_what_was_saved_goes_back_into_the_queue(place: Path, code: int, requeued: bool):
    """By the exit code alone, where no notice came: a mistake would only fail again."""
    (place / "bin" / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    job = submit(place, 1, "out", "finetune")
    _, said = job.communicate(timeout=60)
    assert job.returncode == code, said
    assert (place / "requeued").exists() == requeued


@pytest.mark.parametrize("begun", [False, True])
def test_what_began_is_resumed_and_nothing_else(place: Path, begun: bool):
    (place / "bin" / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$PLACE/words"\n')
    (place / "my run").mkdir()
    if begun:
        (place / "my run" / "recipe.yaml").touch()
    job = submit(place, 2, "my run", "finetune", "--data", "two words")
    _, said = job.communicate(timeout=60)
    words = (place / "words").read_text().splitlines()
    assert job.returncode == 0, said
    expected = ["-m", "uhkd", "finetune", "--data", "two words", "--out", "my run", *(["--resume"] if begun else [])]
    assert words[-len(expected) :] == expected and words[words.index("--nnodes") + 1] == "2"


def test_it_says_how_it_is_used(place: Path):
    job = submit(place, 1)
    assert "usage: sbatch" in job.communicate(timeout=60)[1] and job.returncode == 2
