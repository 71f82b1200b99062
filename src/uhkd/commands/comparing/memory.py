"""Peak memory of one method's training step, measured in a new process that builds nothing else."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from uhkd.commands.comparing.step_benchmark import StepFactory

STEPS = 2  # the first allocates the state of the optimizer, the second runs with it
_STATUS = Path("/proc/self/status")
# return freed blocks to the system at once, so that the peak counts memory in use (the default thresholds of glibc adapt to
# earlier allocations: equal processes then differed by 27 MiB, with these settings by less than 1)
_MALLOC_ENV = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}


def peak_memory(recipe: Mapping[str, Any], untrained: Mapping[str, Mapping[str, Any]]) -> tuple[int | None, str]:
    """Return (bytes, "") or (None, reason): the peak over two steps of a recipe of distill, built by `StepFactory`.

    On a CPU it is the resident memory of the whole process with Python, libraries and images (VmHWM of the Linux kernel; not
    available on other systems), on a GPU the memory of its tensors.
    """
    job = {"options": dict(recipe), "untrained": dict(untrained), "threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=json.dumps(job),
        env={**os.environ, **_MALLOC_ENV},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), "no output")
        return None, f"its process ended with code {done.returncode}: {last}"
    peak = json.loads(done.stdout.splitlines()[-1])
    return peak, "" if peak is not None else "not measured: this system does not record the peak memory of a process"


def main() -> None:
    """Entry point of the new process: read the job from standard input, print the peak as last line of standard output."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    step = StepFactory(job["untrained"], batches=1).step(job["options"])
    on_gpu = step.setup.fabric.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # resets the peak, where the kernel allows it
            Path("/proc/self/clear_refs").write_text("5")
    for number in range(STEPS):
        step(number)
    print(json.dumps(torch.cuda.max_memory_allocated() if on_gpu else _resident_peak()))


def _resident_peak() -> int | None:
    """Return bytes, or None on other systems. Not ru_maxrss, which a new program inherits from the one that started it."""
    if not _STATUS.is_file():
        return None
    lines = (line.split() for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return next((1024 * int(fields[1]) for fields in lines if fields[:1] == ["VmHWM:"]), None)
