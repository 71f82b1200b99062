"""What the measuring scripts share: the pairs of networks, random images, the device, the file that is written."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uhkd.recipe import DistillRecipe, build, to_yaml
from uhkd.runs import environment, write_atomically

# asked at the start, as files may change meanwhile; the command would name places on this machine
FACTS = {key: value for key, value in environment().items() if key != "command"}
Step = Callable[[int], None]  # takes the number of the round
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # CUDA_VISIBLE_DEVICES= (empty) leaves the CPU
PAIRS: dict[str, dict[str, Any]] = {
    "resnet10--vit-micro-32": {"teacher": "uhkd/resnet10", "student": "uhkd/vit_micro"},
    "resnet10--resnet-micro-32": {
        "teacher": "uhkd/resnet10",
        "student": "uhkd/resnet10",
        "student_options": {"channels": [16, 32, 64, 128]},
    },
    "swin-t--resnet18-224": {"teacher": "timm/swin_tiny_patch4_window7_224", "student": "timm/resnet18"},
    "convnext-t--deit-t-224": {"teacher": "timm/convnext_tiny", "student": "timm/deit_tiny_patch16_224"},
    "mixer-b16--mobilenetv2-224": {"teacher": "timm/mixer_b16_224", "student": "timm/mobilenetv2_100"},
}


def size_of(pair: str) -> int:
    """Side of a pair's images in pixels."""
    return int(pair.rpartition("-")[2])


def batch_of(pair: str) -> int:
    """Images a step that suit the device."""
    return {("cpu", 32): 64, ("cpu", 224): 4, ("cuda", 32): 256, ("cuda", 224): 64}[DEVICE, size_of(pair)]


def make_images(folder: Path, size: int, count: int) -> Path:
    """Random images of 100 classes as an .npz file."""
    rng, file = np.random.default_rng(0), folder / f"random-{size}.npz"
    np.savez(
        file,
        train_images=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        train_labels=np.arange(count) % 100,
    )
    return file


def view_options(pair: str, data: Path) -> dict[str, Any]:
    """What a pair's trainings and its cache have in common."""
    return {"data": str(data), "flip": True, "crop": "resized" if size_of(pair) == 224 else "pad"}


def write_recipe(pair: str, data: Path, file: Path, **fields: Any) -> Path:
    """A recipe of distill for a pair, its networks with random weights, as a file."""
    own = {k: v for k, v in PAIRS[pair].items() if k.startswith("student")}
    teacher = {"teacher": PAIRS[pair]["teacher"], "teacher_start": "random", "allow_weak_teacher": True}
    recipe = build(DistillRecipe, view_options(pair, data) | own | teacher | fields)
    file.write_text(to_yaml(recipe))
    return file


def make_cache(pair: str, data: Path, folder: Path, batch: int, *more: str) -> Path:
    """One view of every image by a pair's teacher, with random weights."""
    views = view_options(pair, data)
    fields = ["--data", views["data"], "--crop", views["crop"], "--flip", "--teacher", PAIRS[pair]["teacher"]]
    fields += ["--teacher-start", "random", "--allow-weak-teacher", "--views", "1", "--batch-size", str(batch), *more]
    uhkd("cache", *fields, "--out", str(folder))
    return folder


def uhkd(*fields: str) -> None:
    """The command line in a process of its own; its output is shown when it fails.

    Raises:
        RuntimeError: when it fails, with its last line.
    """
    done = subprocess.run([sys.executable, "-m", "uhkd", *fields], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RuntimeError(f"uhkd {fields[0]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def wait() -> None:
    """For the GPU, whose work is only queued otherwise."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth() -> float:
    """Bytes a second that a plain copy reads and writes: the practical limit of what the device moves."""
    x = torch.empty(2**28 if DEVICE == "cuda" else 2**26, dtype=torch.uint8, device=DEVICE)
    y, best = torch.empty_like(x), float("inf")
    for _ in range(10):
        wait()
        began = time.perf_counter()
        y.copy_(x)
        wait()
        best = min(best, time.perf_counter() - began)
    return 2 * x.numel() / best


def parser(description: str | None, *, pair: bool = False, rounds: int = 20, least: int = 2) -> argparse.ArgumentParser:
    """The options that all scripts have; fewer rounds than `least` are refused."""

    def count(name: str) -> int:
        if (found := int(name)) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {found}")
        return found

    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if pair:
        made.add_argument("--pair", choices=list(PAIRS), default=next(iter(PAIRS)))
        made.add_argument("--batch", type=int, help="images a step; none: by device and image size")
    made.add_argument("--rounds", type=count, default=rounds, help=f"at least {least}")
    made.add_argument("--out", type=Path, help="JSON file to write")
    return made


def save(out: Path | None, title: str, settings: dict[str, Any], **found: Any) -> None:
    """Write what was found, with what it rests on."""
    content = {"title": title, "environment": FACTS, "settings": settings, **found}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(content, indent=1) + "\n")
