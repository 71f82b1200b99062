"""All measurements of one machine within a budget of minutes, as one JSON: made for a GPU that is lent for a short while.

    python benchmarks/everything.py --minutes 9 --out gpu.json

Sections run in the order of their importance, each as a process of its own with the time that is left; what did not fit or
failed says so, and the file is whole after every section. Nothing is downloaded: images and weights are random, which changes
no time. What a section measures is told at the top of its script.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import FACTS, PAIRS

from uhkd.runs import write_atomically

HERE = Path(__file__).resolve().parent
LEAST = 20.0  # seconds in which no section gets anywhere


def sections(rounds: int, gpu: bool) -> dict[str, list[str]]:
    """The command of every section, most important first."""
    few, many = str(max(2, rounds // 4)), str(max(20, rounds))
    small, large, *others = ("resnet10--vit-micro-32", "swin-t--resnet18-224", *PAIRS)
    pairs = {
        f"steps: {name}": ["steps.py", "--pair", name, "--rounds", str(rounds)] for name in (small, large, *others)
    }
    first = {name: pairs.pop(name) for name in list(pairs)[:2]}
    images = ["--images", "20000"] if gpu else []
    return {
        **first,
        "transform": ["spectral.py", "--rounds", many, "--batch", "256" if gpu else "8"],
        "writing: 32 px": ["writing.py", "--pair", small, "--rounds", few],
        "writing: 224 px": ["writing.py", "--pair", large, "--rounds", few],
        "reading": ["stored.py", "--rounds", "3"],
        "epochs": ["epochs.py", "--pair", small, "--rounds", few, "--candidates", "scratch", "uhkd-stored", *images],
        "options": ["options.py", "--rounds", str(rounds)],
        **pairs,
        "data": ["data.py", "--rounds", "3"],
    }


def measure(command: list[str], seconds: float, environ: Mapping[str, str]) -> Any:
    """A section's JSON, or why there is none. Whatever it started is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "section.json")
        log = Path(folder, "said")
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, str(HERE / command[0]), *command[1:], "--out", str(out)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**environ, "TMPDIR": folder},
                start_new_session=True,
            )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "not finished: no time left"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children too
            process.wait()
        if process.returncode or not out.exists():
            last = (log.read_text().strip().splitlines() or [f"ended with {process.returncode}"])[-1]
            return f"failed: {last.replace(folder, '...').replace(str(HERE.parent), '.')[:300]}"
        return json.loads(out.read_text())


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=9.0, help="budget of the whole run")
    options.add_argument("--rounds", type=int, default=20, help="interleaved rounds of steps; others take their share")
    options.add_argument("--sections", nargs="+", help="some only, by the beginning of their names; none: all")
    options.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: leave the GPU alone")
    options.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = options.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `measure`, which ends what it started
    environ = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ}
    if arguments.device == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    gpu = arguments.device == "auto" and torch.cuda.is_available()
    commands = sections(arguments.rounds, gpu)
    if arguments.sections:
        if unknown := [
            section for section in arguments.sections if not any(name.startswith(section) for name in commands)
        ]:
            options.error(f"no section begins with {', '.join(unknown)}; there are: {', '.join(commands)}")
        commands = {k: v for k, v in commands.items() if k.startswith(tuple(arguments.sections))}
    content: dict[str, Any] = {"title": "Everything on one machine", "environment": FACTS, "sections": {}}
    for name, command in commands.items():
        began = time.monotonic()
        left = end - began
        result = "not run: no time left" if left < LEAST else measure(command, left, environ)
        content["sections"][name] = result
        write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")
        detail = f" ({result})" if isinstance(result, str) else ""
        print(f"{name}: {time.monotonic() - began:.0f} s{detail}", flush=True)


if __name__ == "__main__":
    main()
