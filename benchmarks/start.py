"""How long a command computes before it answers: processor time, user and system, of a process of its own.

    python benchmarks/start.py --rounds 5 --out start.json

Of commands that train nothing and of mistakes, beside the time in which they ought to answer. Every round runs each command
once. The first round, which may write bytecode, is left out. Processor time hardly depends on what else the machine does; wall
time, noted beside it, does.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import parser, save

PAIR = "--teacher uhkd/resnet10 --student uhkd/vit_micro"
# seconds of processor time, by command line
TARGETS = {
    "--help": 0.5,
    "distill --help": 2.0,
    "recipes": 2.0,
    "models uhkd/*": 2.0,
    "watch --once run": 2.0,
    "distil": 2.0,
    f"distill {PAIR} --data digits --epoch 3": 2.0,
    f"distill {PAIR}": 2.0,
    f"distill {PAIR} --data digits --epochs many": 2.0,
    f"distill {PAIR} --data digits --method uhk": 2.0,
    f"distill {PAIR} --data digit": 2.0,
    "finetune --model timm/resnet81 --data digits": 2.0,
    "eval nosuch": 2.0,
}


def measure(line: str, folder: Path) -> tuple[float, float]:
    """Processor and wall seconds of one command line of `uhkd` in `folder`.

    Raises:
        RuntimeError: when it ends otherwise than by an answer or a mistake of the user's.
    """
    before, began = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "uhkd", *line.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode not in (0, 2):
        raise RuntimeError(f"uhkd {line}: {done.stderr.strip()}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, wall


def main() -> None:
    """Measure and write."""
    arguments = parser(__doc__, rounds=5).parse_args()
    rounds: dict[str, list[tuple[float, float]]] = {line: [] for line in TARGETS}
    with tempfile.TemporaryDirectory() as place:
        run = Path(place, "run")
        run.mkdir()
        (run / "recipe.yaml").write_text("model: uhkd/vit_micro\ndata: digits\n")
        for number in range(arguments.rounds + 1):
            for line, found in rounds.items():
                seconds = measure(line, Path(place))
                if number:
                    found.append(seconds)
    commands: dict[str, dict[str, Any]] = {}
    for line, found in rounds.items():
        processor, wall = (list(column) for column in zip(*found, strict=True))
        median = statistics.median(processor)
        commands[line] = {
            "processor_seconds": processor,
            "wall_seconds": wall,
            "median": median,
            "target": TARGETS[line],
        }
        print(f"uhkd {line}: {median:.2f} s of the processor, expected at most {TARGETS[line]:g}")
    save(
        arguments.out, "Processor time of a command before it answers", {"rounds": arguments.rounds}, commands=commands
    )


if __name__ == "__main__":
    main()
