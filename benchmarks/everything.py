"""All measurements of one machine within a budget of minutes, as one JSON: made for a GPU that is lent for a short while.

    python benchmarks/everything.py --minutes 9 --out gpu.json

Sections run in the order of their importance, each with the time that is left; what did not fit says so, and the file is
whole after every section. Nothing is downloaded: images and weights are random, which changes no time. Steps: scratch, KD
and UHKD with a live teacher and with stored signals (reading included), OFA, FitNet, CRD, interleaved; writing of signals
beside the teacher's own speed. Then reading, the transform, a plain copy (the practical limit of what the device moves),
the student's options, the loader.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uhkd.recipe import to_yaml
from uhkd.runs import environment, write_atomically

HERE = Path(__file__).resolve().parent
PAIRS: dict[str, dict[str, Any]] = {
    "resnet10--vit-micro-32": {"teacher": "uhkd/resnet10", "student": "uhkd/vit_micro", "size": 32},
    "resnet10--resnet-micro-32": {
        "teacher": "uhkd/resnet10",
        "student": "uhkd/resnet10",
        "student_options": {"channels": [16, 32, 64, 128]},
        "size": 32,
    },
    "swin-t--resnet18-224": {"teacher": "timm/swin_tiny_patch4_window7_224", "student": "timm/resnet18", "size": 224},
    "convnext-t--deit-t-224": {"teacher": "timm/convnext_tiny", "student": "timm/deit_tiny_patch16_224", "size": 224},
    "mixer-b16--mobilenetv2-224": {"teacher": "timm/mixer_b16_224", "student": "timm/mobilenetv2_100", "size": 224},
}
METHODS = ("scratch", "kd", "uhkd", "stored", "ofa", "fitnet", "crd")


def make_data(folder: Path, images: int, small_images: int) -> dict[int, Path]:
    """Random images of 100 classes as .npz files, by size."""
    rng, files = np.random.default_rng(0), {}
    for size, count in ((32, small_images), (224, images)):
        files[size] = folder / f"random-{size}.npz"
        pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        np.savez(files[size], train_images=pixels, train_labels=np.arange(count) % 100)
    return files


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a plain copy reads and writes: the practical limit that the transform is held against."""
    x = torch.empty(2**28 if device == "cuda" else 2**25, dtype=torch.uint8, device=device)
    y, best = torch.empty_like(x), float("inf")
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        y.copy_(x)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * x.numel() / best


def option_ratios(device: str, rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Time of a training step of a CNN and a ViT with each option, relative to the same without, interleaved: median ratio."""
    from uhkd.models import create

    found: dict[str, dict[str, float]] = {}
    for name in ("timm/resnet18", "timm/deit_tiny_patch16_224"):

        def make(name: str = name, **options: Any) -> Callable[[], None]:
            torch.manual_seed(0)
            model = create(name, num_classes=100).to(device)
            form = torch.channels_last if options.get("channels_last", True) else torch.contiguous_format
            model = model.to(memory_format=form)
            x = torch.rand(batch, 3, 224, 224, device=device).contiguous(memory_format=form)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=options.get("fused"))
            if options.get("compile"):
                model.compile()

            def step() -> None:
                with torch.autocast(device, torch.bfloat16, enabled=options.get("bf16", True)):
                    loss = model(x).logits.float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                _wait(device)

            return step

        base = make()
        variants = {
            "no channels_last": {"channels_last": False},
            "fp32": {"bf16": False},
            "fused AdamW": {"fused": True},
        }
        if device == "cuda":
            variants["compile"] = {"compile": True}
        for label, options in variants.items():
            other, ratios = make(**options), []
            for _ in range(3):
                base(), other()
            for _ in range(rounds):
                began = time.perf_counter()
                base()
                middle = time.perf_counter()
                other()
                ratios.append((time.perf_counter() - middle) / (middle - began))
            found.setdefault(name, {})[label] = float(np.median(ratios))
    return found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Run:
    """The sections, and the file they fill."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.end = asked, time.monotonic() + 60 * asked.minutes
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        facts = {k: v for k, v in environment().items() if k != "command"}
        self.content: dict[str, Any] = {"title": "Everything on one machine", "environment": facts, "sections": {}}

    def section(self, name: str, make: Callable[[], Any]) -> None:
        """Measure one thing, or say why not; the file is written either way."""
        if self.asked.sections and name.split(":")[0] not in self.asked.sections:
            return
        began = time.monotonic()
        if self.end - began < 20:
            result: Any = "not run: no time left"
        else:
            try:
                result = make()
            except subprocess.TimeoutExpired:
                result = "not finished: no time left"
            except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", None) or str(error)
                result = f"failed: {said.strip().splitlines()[-1][:300]}"
        self.content["sections"][name] = result
        write_atomically(self.asked.out, json.dumps(self.content, indent=1) + "\n")
        print(
            f"{name}: {time.monotonic() - began:.0f} s{'' if not isinstance(result, str) else f' ({result})'}",
            flush=True,
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A process of ours, ended when the time is over."""
        left = max(1.0, self.end - time.monotonic())
        return subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True, timeout=left)

    def script(self, name: str, place: Path, *words: str) -> Any:
        """Another benchmark's JSON."""
        self.command(str(HERE / name), *words, "--out", str(place / name))
        return json.loads((place / name).read_text())


def measure_pair(run: Run, name: str, place: Path, data: Path) -> dict[str, Any]:
    """Store signals of a pair's teacher, then measure its steps."""
    pair, cpu = PAIRS[name], run.device == "cpu"
    big = pair["size"] == 224
    batch = run.asked.batch or ((4 if cpu else 64) if big else (64 if cpu else 256))
    words = {"data": str(data), "flip": True, "crop": "resized" if big else "pad", "teacher_head": "probe"}
    cache = place / f"cache-{name}"
    teacher = ["--teacher", pair["teacher"], "--teacher-start", "random", "--allow-weak-teacher", "--workers", "0"]
    flags = [
        word for key, value in words.items() if key != "flip" for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    told = run.command(
        "-m",
        "uhkd",
        "cache",
        *teacher,
        *flags,
        "--flip",
        "--views",
        "1",
        "--batch-size",
        str(batch),
        "--out",
        str(cache),
    )
    from uhkd.recipe import DistillRecipe, build

    own = {k: pair[k] for k in ("student", "student_options") if k in pair}
    recipe = build(DistillRecipe, words | own | {"teacher": pair["teacher"], "batch_size": batch, "epochs": 1})
    (place / f"{name}.yaml").write_text(to_yaml(recipe))
    variants = f"stored={{method: uhkd, teacher_cache: '{cache}'}}"
    out = place / f"cost-{name}"
    run.command(
        "-m", "uhkd", "compare", "--cost", "--pairs", str(place / f"{name}.yaml"), "--methods", *run.asked.methods,
        "--variants", variants, "--rounds", str(run.asked.rounds), "--out", str(out),
    )  # fmt: skip
    cost = json.loads((out / "cost.json").read_text())
    written = [line.strip() for line in told.stderr.splitlines() if "records written" in line]
    manifest = json.loads((cache / "cache.json").read_text())
    images = {
        label: facts["batch_size"] / facts["median_seconds"] for label, facts in cost["pairs"][name]["methods"].items()
    }
    return {"writing": written, "layout": manifest["layout"], "images_per_second": images, **cost["pairs"][name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="budget of the whole run")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=None, help="images a step; none: by device and image size")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--sections", nargs="+", help="some only: steps, reading, transform, copy, options, data; none: all"
    )
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    run = Run(asked)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = make_data(place, images=1200 if run.device == "cuda" else 400, small_images=5000)
        for name in asked.pairs:
            run.section(f"steps: {name}", lambda name=name: measure_pair(run, name, place, data[PAIRS[name]["size"]]))
        run.section("reading", lambda: run.script("stored.py", place, "--rounds", "3"))
        run.section("copy", lambda: {"bytes_per_second": copy_bandwidth(run.device)})
        run.section("transform", lambda: run.script("spectral.py", place, "--rounds", str(max(20, asked.rounds))))
        batch = asked.batch or (64 if run.device == "cuda" else 4)
        run.section("options", lambda: option_ratios(run.device, asked.rounds, batch))
        run.section("data", lambda: run.script("data.py", place, "--rounds", "3"))


if __name__ == "__main__":
    main()
