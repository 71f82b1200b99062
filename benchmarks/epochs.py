"""Wall time of an epoch by a live teacher and by stored signals, compared with training without a teacher; and waiting for data.

    python benchmarks/epochs.py --pair resnet10--vit-micro-32 --out epochs.json

Each round trains every candidate once, by the command line in a process of its own, in an order that is reversed from round to
round. The time is the training's own, from the second epoch on: reading of images and signals, views, steps; not validation,
checkpoints or start. Images and weights are random, which changes no time.
"""

import csv
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from measuring import batch_of, make_cache, make_images, parser, save, size_of, uhkd, write_recipe

from uhkd.commands.comparing.cost import geometric_mean

CANDIDATES = ("scratch", "kd", "uhkd", "kd-stored", "uhkd-stored")


def train(recipe: Path, candidate: str, cache: Path, out: Path) -> tuple[float, float]:
    """Seconds of a later epoch, and the share of time that was spent waiting for data."""
    method, _, stored = candidate.partition("-")
    fields = ["--teacher-cache", str(cache)] if stored else []
    uhkd("distill", "-c", str(recipe), "--method", method, *fields, "--out", str(out))
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = rows[0], rows[-1]
    epochs = int(last["epoch"]) - int(first["epoch"])
    return (float(last["seconds"]) - float(first["seconds"])) / epochs, float(last["data_wait"])


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, pair=True, rounds=5)
    options.add_argument("--images", type=int, default=2000, help="of an epoch")
    options.add_argument("--epochs", type=int, default=3, help="at least 2; the first is not counted")
    options.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=CANDIDATES)
    arguments = options.parse_args()
    if arguments.epochs < 2 or arguments.candidates[0] != "scratch":
        options.error("two epochs at least, and scratch first, to which the others are compared")
    batch = arguments.batch or batch_of(arguments.pair)
    seconds: dict[str, list[float]] = {name: [] for name in arguments.candidates}
    waiting: dict[str, list[float]] = {name: [] for name in arguments.candidates}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = make_images(place, size_of(arguments.pair), count=arguments.images + 100)
        held_out = 100 / (arguments.images + 100)
        fields: dict[str, Any] = {"val_fraction": held_out, "batch_size": batch}
        fields |= {"epochs": arguments.epochs, "eval_every": 1, "warmup_epochs": 0}
        recipe = write_recipe(arguments.pair, data, place / f"{arguments.pair}.yaml", **fields)
        cache = make_cache(arguments.pair, data, place / "cache", batch, "--val-fraction", str(held_out))
        for number in range(arguments.rounds):
            for name in arguments.candidates[:: -1 if number % 2 else 1]:
                taken, waited = train(recipe, name, cache, place / f"{name}-{number}")
                seconds[name].append(taken)
                waiting[name].append(waited)
    ratios = {name: asdict(geometric_mean(own, seconds["scratch"])) for name, own in seconds.items()}
    settings = {
        "pair": arguments.pair,
        "batch": batch,
        "rounds": arguments.rounds,
        "epochs": arguments.epochs,
        "images": arguments.images,
    }
    found = {"seconds": seconds, "to_scratch": ratios, "data_wait": waiting}
    save(arguments.out, "Wall time of an epoch", settings, **found)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['mean']:.3f} of scratch, waiting {fmean(waiting[name]):.1%}")


if __name__ == "__main__":
    main()
