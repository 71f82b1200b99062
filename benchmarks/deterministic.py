"""Check whether trainings on a GPU are bit-exact: with --deterministic, stopped and resumed, and without the option.

    python benchmarks/deterministic.py --out deterministic.json

Each method distils two small pairs, a CNN into a ViT and a ViT into a CNN, on random images, in bf16 where the device is fast at
it: twice without the word; twice with it; and with it once more, stopped by a signal in the middle and resumed. Compared are all
numbers of the student. A method with an operation that cannot repeat is refused; then its row says which.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import DEVICE, make_images, save, uhkd
from safetensors.torch import load_file

from uhkd import distill
from uhkd.methods import method_names
from uhkd.runs import RunFolder
from uhkd.training.signals import TrainingInterrupted
from uhkd.training.step import TrainStep

PAIRS = (("resnet10", "vit_micro"), ("vit_micro", "resnet10"))
OPTIONS = {"epochs": 3, "batch_size": 64, "lr": 1e-3, "mixup": 0.8, "ema_decay": 0.9, "workers": 0}
IMAGES, MIDDLE = 512, 10  # MIDDLE: the step after which a training is stopped, of some twenty


def look(place: Path, pair: tuple[str, str], method: str, deterministic: bool) -> dict[str, Any]:
    """Return which trainings of one method are bit-exact, with the option or without it."""
    began = time.monotonic()

    def run(name: str, *, stop: bool = False) -> dict[str, torch.Tensor]:
        out = str(place / f"{'-'.join(pair)}-{method}-{deterministic}-{name}")
        arguments = {
            "teacher": str(place / pair[0]),
            "allow_weak_teacher": True,
            "student": f"uhkd/{pair[1]}",
            "out": out,
        }
        arguments |= {
            "data": str(place / "random-32.npz"),
            "method": method,
            "device": DEVICE,
            "deterministic": deterministic,
        } | OPTIONS
        if stop:
            with contextlib.suppress(TrainingInterrupted), signalled():
                distill(**arguments)
        distill(**arguments, resume=stop)
        return load_file(RunFolder(out).weights)

    found: dict[str, Any] = {}
    try:
        first, second = run("first"), run("second")
        found["repeats with" if deterministic else "repeats without"] = equal(first, second)
        if deterministic:
            found["stopped and resumed"] = equal(first, run("stopped", stop=True))
    except ValueError as error:
        found["refused"] = str(error).partition(";")[0]
    return found | {"seconds with" if deterministic else "seconds without": round(time.monotonic() - began, 2)}


@contextlib.contextmanager
def signalled() -> Iterator[None]:
    """This process gets SIGUSR1 in the middle of its training."""
    real = TrainStep.__call__

    def step(self: TrainStep, batch: Any, number: int, weights: Any) -> None:
        real(self, batch, number, weights)
        if number == MIDDLE:
            os.kill(os.getpid(), signal.SIGUSR1)

    TrainStep.__call__ = step
    try:
        yield
    finally:
        TrainStep.__call__ = real


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two networks have the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> None:
    """Train and compare."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options.add_argument("--methods", nargs="+", default=list(method_names()))
    options.add_argument("--jobs", type=int, default=1, help="processes at a time")
    arguments = options.parse_args()
    rows = {
        (pair, method): {"pair": "-".join(pair), "method": method} for pair in PAIRS for method in arguments.methods
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = make_images(place, 32, IMAGES)
        for name in PAIRS[0]:
            fields = ["--epochs", "1", "--batch-size", "64", "--lr", "0.001", "--workers", "0", "--data", str(data)]
            uhkd("finetune", "--model", f"uhkd/{name}", *fields, "--out", str(place / name))
        # a process for each: torch's switch stays for the process, and cuBLAS looks at its settings but once
        fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
        with ProcessPoolExecutor(arguments.jobs, **fresh) as pool:
            tasks = list(itertools.product(rows, (False, True)))
            found = pool.map(look, *zip(*((place, *row, deterministic) for row, deterministic in tasks), strict=True))
            for (row, _), result in zip(tasks, found, strict=True):
                rows[row] |= result
    save(arguments.out, "Bit-exact repetition", {"images": IMAGES, **OPTIONS}, rows=list(rows.values()))
    print(*rows.values(), sep="\n")


if __name__ == "__main__":
    main()
