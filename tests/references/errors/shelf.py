"""What cases find in their folder: images, a run on them, a teacher of digits, its cache, a training that was stopped."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import uhkd
from uhkd.runs import RunFolder
from uhkd.training import fit

CLASSES = ("ant", "bee", "cat")
# one tiny network of ours and one short training, as flags and as words
TINY = "--device cpu --precision fp32 --workers 0 --image-size 16 --epochs 1 --batch-size 8"
NETWORK = "uhkd/resnet10 --options channels=[4,4,8,8]"
FINETUNE = f"finetune --model {NETWORK} {TINY} --out new"
DIGITS = "--data digits --train-limit 40"
DISTILL = f"distill --student uhkd/resnet10 --student-options channels=[4,4,8,8] {TINY} --out new"
CACHED = f"distill --student uhkd/vit_micro {TINY} --out new --teacher-cache cache"
CACHE = (
    "cache --teacher teacher --device cpu --precision fp32 --workers 0 --batch-size 20 --views 2 --allow-weak-teacher"
)
MACHINE = {"device": "cpu", "precision": "fp32", "workers": 0}
WORDS = MACHINE | {"image_size": 16, "epochs": 1, "batch_size": 8, "options": {"channels": [4, 4, 8, 8]}}


def build(shelf: Path) -> None:
    """Make everything once; cases get copies."""
    with contextlib.chdir(shelf), pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda folder: [])
        digits = MACHINE | {"data": "digits", "train_limit": 40}
        pictures("images")
        uhkd.finetune(model="uhkd/resnet10", data="images", out="run", **WORDS)
        uhkd.finetune(model="uhkd/resnet10", out="teacher", **WORDS | digits)
        uhkd.cache(teacher="teacher", out="cache", views=2, allow_weak_teacher=True, batch_size=20, **digits)
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        stopped = uhkd.finetune(model="uhkd/resnet10", out="stopped", **WORDS | digits | {"epochs": 2}).run
        for file in (stopped.result, stopped.config, stopped.weights):
            file.unlink()


def take(shelf: Path, names: Iterable[str]) -> None:
    """Copies of some of it into the current folder."""
    for name in names:
        shutil.copytree(shelf / name, name)


def pictures(folder: str | Path, classes: Iterable[str] = CLASSES, count: int = 8) -> None:
    """Small images of one folder a class."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(classes):
        place = Path(folder, name)
        place.mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(60 * label, 60 * label + 90, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")


def write(name: str, content: str | bytes) -> None:
    """A file, its folders too."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
