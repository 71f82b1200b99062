"""Peak memory of one method's training step, measured in a fresh process that builds nothing else."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from uhkd.commands.comparing.step import StepFactory

STEPS = 2  # the first makes the optimizer's state, the second meets it
_STATUS = Path("/proc/self/status")
# freed blocks go back to the system at once, so that the peak is of memory in use (glibc's own thresholds move with what was
# freed before: equal processes then differed by 27 MiB, with these by less than 1)
_STEADY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}


def peak_memory(recipe: Mapping[str, Any], untrained: Mapping[str, Mapping[str, Any]]) -> tuple[int | None, str]:
    """(bytes, "") or (None, why not): the peak over two steps by a recipe of distill, as `StepFactory` builds them.

    On a CPU the resident memory of the whole process, with Python, libraries and images, as the kernel notes it (VmHWM); on a
    GPU what its tensors took there. Where the system notes no peak (outside of Linux) only a GPU's is measured.
    """
    job = {"words": dict(recipe), "untrained": dict(untrained), "threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=json.dumps(job),
        env={**os.environ, **_STEADY},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), "it said nothing")
        return None, f"its process ended with code {done.returncode}: {last}"
    peak = json.loads(done.stdout.splitlines()[-1])
    return peak, "" if peak is not None else "not measured here: this system does not note a process's peak"


def main() -> None:
    """The fresh process: a question from standard input, its answer as the last line of standard output."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    step = StepFactory(job["untrained"], batches=1).step(job["words"])
    on_gpu = step.setup.fabric.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # forgets the peak of the preparations, where the kernel lets us
            Path("/proc/self/clear_refs").write_text("5")
    for number in range(STEPS):
        step(number)
    print(json.dumps(torch.cuda.max_memory_allocated() if on_gpu else _resident_peak()))


def _resident_peak() -> int | None:
    """Bytes, or None where the system does not say. Not ru_maxrss: a new program inherits that from the one that started it."""
    if not _STATUS.is_file():
        return None
    found = [line.split()[1] for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None
