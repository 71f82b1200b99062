"""How fast stored signals are read at random, and what memory that takes, as the number of images grows.

    python benchmarks/stored.py --out stored.json

Records of the size that Swin-T's four levels give by default are written for 1,000, 10,000 and 50,000 images (330 MB in a
temporary folder), then read in batches of 128 in random order, each in a process of its own, on one core: records a second with
their checksums, and the process's resident memory before and after. Files that were just written lie in the system's page
cache, so this is the cost of our own work; a cold disk adds its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import parser, save

from uhkd.cache import RecordFormat, Shards
from uhkd.cache.shards import HEAD

LAYOUT = RecordFormat(100, 768, ((64, 9),) * 4)  # CIFAR-100's classes, Swin-T's embedding, 64 channels at radius 1
BATCH = 128


def write(folder: Path, images: int) -> Shards:
    """Shards of random records."""
    shards = Shards(folder, images, LAYOUT.size, "benchmark")
    rng = np.random.default_rng(0)
    for shard in shards.of_view(0):
        place = folder / shard.name
        place.parent.mkdir(parents=True, exist_ok=True)
        bodies = rng.integers(0, 256, (shard.stop - shard.start, LAYOUT.size), np.uint8)
        place.write_bytes(shards.encode(0, shard.start, np.zeros(len(bodies), np.uint32), bodies))
    return shards


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def read(folder: str, images: int, seconds: float) -> None:
    """Read at random for a while, every record at least once; prints what was seen."""
    shards = Shards(Path(folder), images, LAYOUT.size, "benchmark")
    rng = np.random.default_rng(1)
    shards.read(0, np.arange(BATCH))
    before, began, count = resident(), time.perf_counter(), 0
    while count < images or time.perf_counter() - began < seconds:
        order = rng.permutation(images)
        for start in range(0, images - BATCH + 1, BATCH):
            shards.read(0, order[start : start + BATCH])
        count += images // BATCH * BATCH
    taken = time.perf_counter() - began
    print(json.dumps({"records_per_second": count / taken, "resident_before": before, "resident_after": resident()}))


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, rounds=5, least=1)
    options.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 50_000])
    options.add_argument("--seconds", type=float, default=2.0, help="of reading, at least, a round")
    options.add_argument("--read", nargs=2, metavar=("FOLDER", "IMAGES"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.read:
        read(arguments.read[0], int(arguments.read[1]), arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as place:
        sizes = {images: write(Path(place, str(images)), images) for images in arguments.images}
        rows: dict[str, list[dict[str, float]]] = {str(images): [] for images in sizes}
        for _ in range(arguments.rounds):  # in turn, so that a noisy machine is noisy for all
            for images, shards in sizes.items():
                command = [sys.executable, __file__, "--read", str(shards.folder), str(images)]
                output = subprocess.run(
                    [*command, "--seconds", str(arguments.seconds)], check=True, capture_output=True, text=True
                )
                rows[str(images)].append(json.loads(output.stdout))
    settings = {"rounds": arguments.rounds, "batch": BATCH}
    save(arguments.out, "Stored records read at random", settings, record_bytes=LAYOUT.size + HEAD, images=rows)
    for images, found in rows.items():
        rate = sorted(row["records_per_second"] for row in found)[len(found) // 2]
        grown = max(row["resident_after"] - row["resident_before"] for row in found) / 2**20
        print(f"{int(images):>7,} images: {rate:,.0f} records a second, memory grew by {grown:.1f} MiB")


if __name__ == "__main__":
    main()
