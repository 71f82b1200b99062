"""How fast `uhkd cache` writes, compared with the forward pass of the same teacher on the same images.

    python benchmarks/writing.py --pair swin-t--resnet18-224 --out writing.json

Writing is all of it: views made, teacher, spectra, encoding, checksums, the file. The other side only calls the network, for
its logits, on batches that lie on the device; both at evaluation, in the same precision and batch. Every round takes both.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from measuring import DEVICE, PAIRS, batch_of, make_images, parser, save, size_of, view_options, wait

from uhkd.commands.comparing.cost import geometric_mean, time_steps
from uhkd.recipe import CacheRecipe, build
from uhkd.training.cache_writer import CacheWriter

IMAGES = {("cpu", 32): 2048, ("cpu", 224): 112, ("cuda", 32): 16_384, ("cuda", 224): 2048}


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, pair=True)
    options.add_argument("--images", type=int, help="stored in a round; none: by device and image size")
    arguments = options.parse_args()
    size, batch = size_of(arguments.pair), arguments.batch or batch_of(arguments.pair)
    images = arguments.images or IMAGES[DEVICE, size]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fields = view_options(arguments.pair, make_images(place, size, count=images + 100)) | {"train_limit": images}
        fields |= {"teacher": PAIRS[arguments.pair]["teacher"], "teacher_start": "random", "allow_weak_teacher": True}
        fields |= {"views": 1, "batch_size": batch, "out": str(place / "cache"), "val_fraction": 100 / (images + 100)}
        (place / "cache").mkdir()
        work = CacheWriter(build(CacheRecipe, fields), None, None)
        shards = work.stored.shards
        network = work.teacher.network
        device = work.fabric.device
        count = len(work.data.train)
        sizes = [min(batch, count - start) for start in range(0, count, batch)]
        image = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

        def write(_number: int) -> None:
            for shard in shards.of_view(0):
                (work.folder / shard.name).unlink(missing_ok=True)
            work.write()

        def forward(_number: int) -> None:
            with torch.no_grad(), work.fabric.autocast():
                for own in sizes:
                    network(image[:own], frozenset({"logits"}))
            wait()

        steps = {"write": write, "teacher": forward}
        for step in steps.values():
            step(0)
        clock = time.process_time if DEVICE == "cpu" and not work.workers else time.perf_counter
        seconds = time_steps(steps, arguments.rounds, clock)
    share = geometric_mean(seconds["teacher"], seconds["write"])
    speeds = {name: [count / taken for taken in own] for name, own in seconds.items()}
    settings = {
        "pair": arguments.pair,
        "batch": batch,
        "rounds": arguments.rounds,
        "images": count,
        "workers": work.workers,
    }
    title = "Writing teacher outputs, compared with the forward pass alone"
    save(arguments.out, title, settings, images_per_second=speeds, writing_to_teacher=asdict(share))
    print(f"writing at {share.mean:.3f} [{share.low:.3f}, {share.high:.3f}] of the teacher's own speed")


if __name__ == "__main__":
    main()
