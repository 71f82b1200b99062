"""Trainings over and over under every fault that a machine has: what is lost, what leaks, what is left behind?

    python benchmarks/soak.py --minutes 60 --out soak.json

Runs, caches and comparisons of small networks, in processes of their own, are killed, asked to end, have their files damaged,
removed and replaced, their disk filled and their clock set, until each comes to its end. It must then be, to the bit, what it is
undisturbed; a training of two processes that went on with one for a while must have the same files. Memory and open files must
not grow. The seed fixes the order of the faults, not their moments. Exit code 1: something was found.
Linux alone: processes are looked at by /proc.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from soak_folders import differences
from soak_processes import children, ended, fork, left_of, resident, start, wait

from uhkd.__main__ import main as uhkd
from uhkd.runs import RunFolder, environment, write_atomically
from uhkd.training import fit

PLAIN = ["--device", "cpu", "--precision", "fp32", "--batch-size", "20", "--checkpoint-minutes", "1e-9"]
DIGITS = ["--data", "digits", "--train-limit", "100"]
NETWORK = ["--model", "uhkd/resnet10", "--options", "channels=[8, 8, 16, 16]"]
STUDENT = ["--student", "uhkd/vit_micro", "--student-options", "embed_dim=24", "depth=3", "num_heads=2"]
STUDENT += ["--image-size", "16", "--ema-decay", "0.8", "--mixup", "0.4", "--grad-accum-steps", "2"]
TASKS = ("finetune", "distill", "cache", "cached", "compare", "two processes")
SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
    "rank": signal.SIGKILL,  # to one of two processes
    "one process": signal.SIGTERM,  # to a training of two processes that one has resumed
}
LEAK = 24.0  # MB that a process may grow by while it settles, whatever it does and however long


@dataclass(frozen=True)
class Task:
    """A command that makes a folder. resumed: whether it resumes with --resume only. processes: how many run it together."""

    fields: list[str]
    resumed: bool
    faults: tuple[str, ...]
    processes: int = 1


@dataclass
class Soak:
    """The state of one soak: where it works and what it met."""

    place: Path
    work: Path  # where disturbed commands write
    chance: random.Random
    mounted: bool
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    failures: list[str] = field(default_factory=list)

    def tasks(self) -> dict[str, Task]:
        """By name; the first ones make what the later ones need."""
        teacher, cache = str(self.place / "teacher"), str(self.place / "cache")
        common, run = ("kill", "kill", "term", "usr1", "clock"), ("flip", "cut")
        full = ("full",) if self.mounted else ()
        student = ["distill", *DIGITS, *PLAIN, *STUDENT, "--method", "uhkd", "--epochs", "12"]
        live = [*student, "--workers", "0", "--teacher", teacher, "--allow-weak-teacher"]
        fields = ["cache", *DIGITS, "--device", "cpu", "--precision", "fp32", "--workers", "0", "--batch-size", "20"]
        fields += ["--teacher", teacher, "--allow-weak-teacher", "--mixup", "0.4", "--views", "12"]
        images = ["finetune", *NETWORK, "--data", str(self.place / "images"), *PLAIN]
        images += ["--epochs", "12", "--image-size", "16"]
        pairs = ["--pairs", str(self.place / "distill"), "--methods", "scratch", "kd", "--seeds", "1"]
        return {
            "finetune": Task([*images, "--workers", "1"], True, (*common, *run, *full, "image")),
            "distill": Task(live, True, (*common, *run, *full)),
            "cache": Task(fields, False, (*common, *full, "shard")),
            "cached": Task([*student, "--workers", "0", "--teacher-cache", cache], True, (*common, *run, *full)),
            "compare": Task(["compare", *pairs], False, (*common, *full)),
            "two processes": Task(live, True, (*common, *run, *full, "rank", "one process"), processes=2),
        }

    def begin(self) -> None:
        """What all others learn from, and each task undisturbed."""
        rng = np.random.default_rng(0)
        for i in range(60):
            file = self.place / "images" / f"class{i % 2}" / f"{i}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 120 + 100 * (i % 2), (24, 24, 3), np.uint8)).save(file)
        teacher = ["finetune", *NETWORK, *DIGITS, *PLAIN, "--workers", "0", "--image-size", "16", "--epochs", "2"]
        for name, task in {"teacher": Task(teacher, False, ()), **self.tasks()}.items():
            child = start([*task.fields, "--out", str(self.place / name)], self.place / f"{name}.log", task.processes)
            if (code := ended(child)) != 0:
                raise SystemExit(
                    f"undisturbed, {name} failed with {code}:\n{(self.place / f'{name}.log').read_text()[-3000:]}"
                )

    def disturb(self, name: str) -> None:
        """One task from its beginning to its end through a few faults, and whether it is then what it should be."""
        task, out, log = self.tasks()[name], self.work / name, self.place / "disturbed.log"
        log.unlink(missing_ok=True)
        story: list[str] = []
        damaged: set[Path] = set()
        exact = True

        def live(fault: str | None) -> int:
            fields = [*task.fields, "--out", str(out)]
            if task.resumed and RunFolder(out).started():
                fields.append("--resume")
            processes = 1 if fault == "one process" else task.processes
            child = start(fields, log, processes, self.chance.random() if fault == "clock" else None)
            self.lives += 1
            with self.around(fault, child, processes):
                code = ended(child)
            story.append(f"{fault or 'undisturbed'}: {code}")
            if left := left_of(child):
                self.failures.append(f"{name}: processes {left} outlived theirs after {story}")
            return code

        for _ in range(self.chance.randint(1, 4)):
            fault = self.chance.choice(task.faults)
            self.faults[fault] += 1
            exact &= fault != "one process"
            if fault in SIGNALS or fault in ("full", "clock"):
                code = live(fault)
                # by a signal before anything listens to it, saved, stopped, refused for a full disk, or done in time
                if fault in SIGNALS:
                    allowed = {0, -SIGNALS[fault], 128 + SIGNALS[fault], 130}
                else:
                    allowed = {0, 2} if fault == "full" else {0}
                if code not in allowed:
                    self.failures.append(f"{name}: ended with {code} after {story}: {log.read_text()[-1500:]}")
            elif fault in ("flip", "cut"):
                self.damage(out, fault, damaged)
            elif fault == "shard":
                for shard in self.chance.sample(shards := sorted(out.glob("view-*/*.bin")), len(shards) // 3):
                    shard.unlink()
            elif fault == "image" and RunFolder(out).started() and not RunFolder(out).result.exists():
                image = self.place / "images" / "class0" / "0.bmp"
                before = image.read_bytes()
                Image.new("RGB", (25, 24)).save(image)
                if (code := live(None)) != 2 and any(RunFolder(out).checkpoints.glob("step-*")):
                    self.failures.append(f"{name}: went on with another image and ended with {code} after {story}")
                image.write_bytes(before)
                if code != 2:  # it had not gone far enough to have anything to compare with: begun with other images
                    shutil.rmtree(out)
        if (code := live(None)) != 0:
            self.failures.append(f"{name}: ended with {code} after {story}: {log.read_text()[-1500:]}")
        elif differing := differences(self.place / name, out, exact):
            self.failures.append(f"{name}: {'; '.join(differing[:5])} after {story}")
        self.ended[name] += 1
        shutil.rmtree(out, ignore_errors=True)

    @contextlib.contextmanager
    def around(self, fault: str | None, child: int, processes: int) -> Iterator[None]:
        """The fault while a command of so many processes works, at a moment of its own."""
        if fault is not None:
            wait(child, self.chance.uniform(0.05, 2.5))
        filler = self.work / "filler"
        targets = children(child) if processes > 1 else [child]
        if fault in SIGNALS:
            for target in self.chance.sample(targets, 1) if fault == "rank" and targets else targets:
                with contextlib.suppress(ProcessLookupError):  # not waited for yet: no other process has its number
                    os.kill(target, SIGNALS[fault])
        elif fault == "full":
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink(missing_ok=True)

    def damage(self, out: Path, fault: str, damaged: set[Path]) -> None:
        """A byte, or the end, of the newest checkpoint, as long as another one is sound."""
        there = sorted(out.glob("checkpoints/step-*"), key=lambda p: int(p.name[5:]))
        intact = [p for p in there if p not in damaged]
        if len(intact) < 2 or intact[-1] != there[-1]:
            return
        file = self.chance.choice(sorted(there[-1].iterdir()))
        content = bytearray(file.read_bytes())
        if fault == "flip":
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        file.write_bytes(content if fault == "flip" else content[: len(content) // 2])
        damaged.add(there[-1])

    def steady(self, rounds: int, epochs: int) -> dict[str, Any]:
        """Memory (MB) and open files of one process over many trainings, and of one training over many epochs."""
        fields = [*self.tasks()["distill"].fields, "--out"]
        noted = self.place / "steady.json"

        def trainings() -> None:
            found = []
            for number in range(rounds):
                uhkd([*fields, str(self.place / f"steady-{number}"), "--epochs", "2"])
                found.append([resident(os.getpid()), len(list(Path("/proc/self/fd").iterdir()))])
                shutil.rmtree(self.place / f"steady-{number}")
            noted.write_text(json.dumps(found))

        if code := ended(fork(trainings, self.place / "steady.log")):
            raise SystemExit(f"trainings one after the other failed with {code}")
        over_trainings = json.loads(noted.read_text())
        child = start([*fields, str(self.place / "steady"), "--epochs", str(epochs)], self.place / "steady.log")
        over_epochs = []
        while wait(child, 0.1):
            if (self.place / "steady" / "metrics.csv").exists():
                with contextlib.suppress(OSError):  # it may have ended
                    over_epochs.append([resident(child), len(list(Path(f"/proc/{child}/fd").iterdir()))])
        if code := ended(child):
            raise SystemExit(f"a long training failed with {code}")
        found = {"over trainings": over_trainings, "over epochs": over_epochs[:-1]}  # the last is that of one that ends
        for name, pairs in found.items():
            half = len(pairs) // 2
            for i, (what, much) in enumerate((("MB of memory", LEAK), ("open files", 0))):
                early, late = (statistics.median(p[i] for p in part) for part in (pairs[1 : half + 1], pairs[half:]))
                if late - early > much:
                    self.failures.append(f"{what} grow {name}: {early} -> {late}")
        return found


def in_own_namespace() -> bool:
    """Whether this process may mount a file system of its own; it then does, and continues there."""
    probe = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none "$0"', tempfile.gettempdir()]
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True).returncode == 0


def main() -> None:
    """Soak, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside and in_own_namespace():
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv, "--inside"])
    import torch

    torch.set_num_threads(1)
    fit.draw = lambda folder: []  # pictures take longer than these trainings
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uhkd-soak-") as folder:
        work = Path(folder, "work")
        work.mkdir()
        if arguments.inside:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "soak", work], check=True)
        soak = Soak(Path(folder), work, random.Random(arguments.seed), arguments.inside)
        soak.begin()
        steady = soak.steady(rounds=6 if arguments.minutes < 5 else 40, epochs=40 if arguments.minutes < 5 else 600)
        # each in turn, and at least once, however little time there is
        names = arguments.tasks or TASKS
        while time.monotonic() - began < 60 * arguments.minutes or set(names) - soak.ended.keys():
            soak.disturb(names[sum(soak.ended.values()) % len(names)])
            if len(soak.failures) > 20:
                break
        if arguments.inside:
            subprocess.run(["umount", work], check=True)
    found = {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "seed": arguments.seed,
        "ended": dict(soak.ended),
        "lives": soak.lives,
        "faults": dict(soak.faults),
        "failures": soak.failures,
        "memory (MB) and open files": steady,
        "environment": {k: v for k, v in environment().items() if k != "command"},
    }
    write_atomically(arguments.out, json.dumps(found, indent=1) + "\n")
    met = f"{soak.lives} lives of {soak.ended.total()} commands, {soak.faults.total()} faults"
    print(f"{met}, {len(soak.failures)} failures: {arguments.out}")
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()
