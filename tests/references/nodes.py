"""Trainings of several processes, as torchrun starts them on one machine or, by two of them, as if on two."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import uhkd

ENVIRON = os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
# finished runs keep their last checkpoint, for a look at the optimizer, and draw nothing, which takes longer than training
PROGRAM = """
import sys
from uhkd.distributed import exit_with_parent
exit_with_parent()
from uhkd.__main__ import main
from uhkd.training import fit
from uhkd.runs import RunFolder
RunFolder.drop_checkpoints = lambda self: None
fit.draw = lambda folder: []
sys.exit(main(sys.argv[1:]))
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def distil(place: Path, name: str, *more: str) -> subprocess.Popen[str]:
    """The student of `place` by two processes of one node."""
    command = [*TORCHRUN, "--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0"]  # a free port
    command += ["program.py", "distill", "-c", "recipe.yaml", "--out", name, *more]
    return subprocess.Popen(command, cwd=place, env=ENVIRON, stderr=subprocess.PIPE, text=True)


def distil_by_nodes(place: Path, name: str, *more: str) -> list[subprocess.Popen[str]]:
    """The student of `place` by two nodes of one process each; the first node holds the meeting place."""
    meeting = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
        "--rdzv-id",
        name,
    ]
    command = [*TORCHRUN, *meeting, "--local-addr", "127.0.0.1"]
    words = ["program.py", "distill", "-c", "recipe.yaml", "--out", name, *more]
    return [
        subprocess.Popen(
            [*command, "--node-rank", str(node), *words], cwd=place, env=ENVIRON, stderr=subprocess.PIPE, text=True
        )
        for node in (0, 1)
    ]


def children(process: int) -> list[int]:
    """Processes that a process started and that are still there."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it may be gone
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                    found.append(int(folder.name))
    return sorted(found)


def rank_of(process: int) -> int | None:
    """Its rank among all, None for one that is gone or has none yet."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{process}/environ").read_text().split("\0RANK=")[1].split("\0")[0])
    return None
