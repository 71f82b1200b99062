"""How work on tar shards grows with the number of samples and of processes: opening, order, reading, training.

    python benchmarks/scaling.py --out scaling.json

Opening: an index of N samples read from its file; an epoch's order of all of them, shuffled at once and eight shards at a time in
eight lanes. Headers: samples a second where there is no such file. Reading: batches of 224 px, random crops of JPEG files of
500 x 375, from a folder, from shards shuffled at once and from shards near each other, on one core, in turn, sources opened anew
each time. Training: images a second of a small student by one process and by two on this machine's cores (one thread each), in
turn, and seconds and memory of an epoch by the number of images. Files that were just written lie in the system's page cache.
"""

import csv
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import parser, save
from PIL import Image

from uhkd.data import Augmentation, BatchPlan, ShardOptions, make_index, open_data, train_loader
from uhkd.data.rng import stream
from uhkd.data.sampler import ShardShuffle
from uhkd.data.tar_index import Index, read_index

SAMPLES = (10_000, 100_000, 1_000_000, 10_000_000)
A_SHARD = 1000  # samples
PHOTOS, BATCH = 512, 32


def opening(samples: int) -> dict[str, float]:
    """Of an index of so many samples."""
    shards = max(1, samples // A_SHARD)
    bounds = np.linspace(0, samples, shards + 1).astype(np.int64)
    draw = np.random.default_rng(0)
    places = np.arange(samples, dtype=np.int64)
    names = tuple(f"train-{number:06d}.tar" for number in range(shards))
    sizes, lengths = np.full(shards, 2**50, np.int64), np.full(samples, 500, np.int64)
    headers, keys = draw.integers(0, 2**32, samples, np.uint32), draw.integers(0, 2**63, samples, np.uint64)
    index = Index(names, (), sizes, bounds, 512 * (places + 1), lengths, headers, keys, places % 1000)
    content = index.to_bytes()
    began = time.perf_counter()
    read_index(content, "it")
    found = {"open_seconds": time.perf_counter() - began, "file_bytes_a_sample": len(content) / samples}
    shuffle = ShardShuffle(bounds, 8, 8)
    for name, order in (("at_once", lambda g: g.permutation(samples)), ("near", shuffle.order)):
        began = time.perf_counter()
        order(stream("order", 0, 0))
        found[f"order_seconds_{name}"] = time.perf_counter() - began
    return found


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """A plain tar."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def headers(place: Path) -> float:
    """Samples a second that are found by reading a tar's headers, an image and a class each."""
    write_tar(place / "headers.tar", {f"{n:06d}.{kind}": b"1" for n in range(10_000) for kind in ("jpg", "cls")})
    began = time.perf_counter()
    make_index(place, ["headers.tar"])
    return 10_000 / (time.perf_counter() - began)


def photo(number: int, size: tuple[int, int] = (375, 500)) -> bytes:
    """A JPEG file like a photo's: smooth shapes and some grain."""
    draw, file = np.random.default_rng(number), io.BytesIO()
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    grain = draw.normal(0, 8, (*size, 3))
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def photos(place: Path) -> dict[str, Any]:
    """The same photos as a folder and as shards; bytes of one."""
    contents = [photo(number) for number in range(PHOTOS)]
    for part, numbers in (("train", range(PHOTOS)), ("val", range(8))):
        for number in numbers:
            file = place / "folder" / part / str(number % 8) / f"{number:06d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents[number])
        (place / "tars").mkdir(exist_ok=True)
        each = len(numbers) // (8 if part == "train" else 1)
        for shard, first in enumerate(range(0, len(numbers), each)):
            files = {
                f"{n:06d}.{k}": c
                for n in range(first, first + each)
                for k, c in (("jpg", contents[n]), ("cls", b"%d" % (n % 8)))
            }
            write_tar(place / "tars" / f"{part}-{shard:04d}.tar", files)
    return {"photos": PHOTOS, "photo_bytes": median(map(len, contents))}


def reading(place: Path, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way, by rounds."""
    ways = {
        "folder": ("folder", None),
        "shards, shuffled at once": ("tars", None),
        "shards, two at a time": ("tars", ShardOptions(2)),
    }
    augmentation = Augmentation((224, 224), crop="resized", flip=True)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (where, how) in ways.items():
            source = open_data(place / where, shards=how).train
            loader = train_loader(source, augmentation, BatchPlan(number, BATCH, epochs=1), num_classes=8)
            began = time.perf_counter()
            seen = sum(len(batch.index) for batch in loader)
            found[name].append(seen / (time.perf_counter() - began))
    return found


def train(place: Path, name: str, images: int, processes: int, epochs: int = 2) -> dict[str, float]:
    """A finetune of a small network on so many small images in shards: its own rate, and the memory it took."""
    data, out = place / f"small-{images}", place / f"run-{name}"
    if not data.exists():
        data.mkdir()
        draw = np.random.default_rng(0)
        for part, count in (("train", images), ("val", 64)):
            for shard, first in enumerate(range(0, count, 500)):
                files = {}
                for n in range(first, min(first + 500, count)):
                    file = io.BytesIO()
                    Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
                    files |= {f"{n:06d}.png": file.getvalue(), f"{n:06d}.cls": b"%d" % (n % 10)}
                write_tar(data / f"{part}-{shard:04d}.tar", files)
    fields = [
        "finetune",
        "--model",
        "uhkd/resnet10",
        "--data",
        str(data),
        "--epochs",
        str(epochs),
        "--batch-size",
        "64",
        "--out",
        str(out),
    ]
    fields += [
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--shuffle-shards",
        "2",
        "--shuffle-streams",
        "2",
    ]
    start = [sys.executable, "-m", "uhkd"]
    if processes > 1:
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "--standalone",
            "-m",
            "uhkd",
        ]
    done = subprocess.Popen([*start, *fields], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, output = done.communicate()
    if done.returncode:
        raise RuntimeError(output.decode()[-500:])
    with (out / "metrics.csv").open() as file:
        *_, row = csv.DictReader(file)
    return {"images_per_second": float(row["images_per_second"]), "seconds": float(row["seconds"]) / epochs}


def peak_of_children() -> int:
    """Bytes of the largest child so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, rounds=5, least=1)
    options.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES), help="sizes of an index")
    options.add_argument("--images", type=int, nargs="+", default=[1000, 4000, 16_000], help="sizes of a training")
    arguments = options.parse_args()
    found: dict[str, Any] = {"opening": {str(n): opening(n) for n in arguments.samples}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found["headers_per_second"] = headers(place)
        settings = {"rounds": arguments.rounds, "samples_a_shard": A_SHARD, "batch": BATCH} | photos(place)
        found["reading"] = reading(place, arguments.rounds)
        found["growth"] = {}
        for images in sorted(arguments.images):
            found["growth"][str(images)] = train(place, f"grow-{images}", images, 1) | {
                "peak_bytes": peak_of_children()
            }
        found["processes"] = {"1": [], "2": []}
        for number in range(arguments.rounds):
            for processes, rates in found["processes"].items():
                rates.append(
                    train(place, f"{processes}-{number}", min(arguments.images), int(processes))["images_per_second"]
                )
    save(arguments.out, "Growth with samples and processes", settings, **found)
    print(found)


if __name__ == "__main__":
    main()
