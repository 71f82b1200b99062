"""What a training step of one pair costs by each method, with a live teacher and by stored signals (reading included).

    python benchmarks/steps.py --pair swin-t--resnet18-224 --out steps.json

It is `uhkd compare --cost` on random images and weights, which change no time: all methods interleaved, peak memory in fresh
processes. Beside it: bytes of a stored record in both storages.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from measuring import DEVICE, batch_of, make_cache, make_images, parser, save, size_of, uhkd, write_recipe

from uhkd.cache import TeacherCache
from uhkd.cache.shards import HEAD
from uhkd.data import usable_cores

METHODS = ("scratch", "kd", "uhkd", "ofa", "fitnet", "crd")
STORED = ("kd", "uhkd")


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, pair=True)
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = options.parse_args()
    batch = arguments.batch or batch_of(arguments.pair)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = make_images(place, size_of(arguments.pair), count=max(250, 6 * batch))
        cache = make_cache(arguments.pair, data, place / "cache", batch)
        recipe = write_recipe(arguments.pair, data, place / f"{arguments.pair}.yaml", batch_size=batch, epochs=1)
        stored = [f"{method}-stored" for method in STORED if method in arguments.methods]
        variants = [f"{n}={{method: {n.split('-')[0]}, teacher_cache: '{cache}'}}" for n in stored]
        measured = [*arguments.methods, *stored]
        # processes that measure memory: a GPU's minutes are lent, and a CPU has no core to spare
        jobs = min(usable_cores(), len(measured)) if DEVICE == "cuda" else 1
        fields = [
            "--cost",
            "--jobs",
            str(jobs),
            "--pairs",
            str(recipe),
            "--methods",
            *measured,
            "--variants",
            *variants,
        ]
        uhkd("compare", *fields, "--rounds", str(arguments.rounds), "--out", str(place / "cost"))
        found = json.loads((place / "cost" / "cost.json").read_text())["pairs"][arguments.pair]
        for facts in found["methods"].values():
            facts["recipe"].pop("teacher_cache", None)
            facts["images_per_second"] = facts["batch_size"] / facts["median_seconds"]
        record_format = TeacherCache(cache).manifest.record_format
        sizes = {storage: HEAD + replace(record_format, storage=storage).size for storage in ("fp16", "int8")}
    settings = {"pair": arguments.pair, "batch": batch, "rounds": arguments.rounds}
    save(arguments.out, "Cost of one training step", settings, record_bytes=sizes, **found)
    for label, facts in found["methods"].items():
        print(
            f"{label}: {facts['to_scratch']['time']['mean']:.3f} of scratch, {facts['to_kd']['time']['mean']:.3f} of KD"
        )


if __name__ == "__main__":
    main()
