"""Images per second and core that the loader makes, compared with timm's loader on the same work.

    python benchmarks/data.py --rounds 10 --out data.json

Paths: 32 px images in memory with a padded crop and a flip, also with mixup and cutmix, also with RandAugment (all in one
process); JPEG files of photograph size cut to 224 px by a random resized crop, in this process and in two others. timm gets
Pillow images made from an array in memory, as torchvision's CIFAR-100 does, and DeiT's padded crop for small images; its
mixup is drawn once a batch, as its scripts do, ours for every image. timm's batches are normalised, ours are normalised by
each network for itself. "one by one" calls `augment_batch` on each image alone.

Every round takes every path by every loader, in an order that is reversed from round to round. An iterator's first batches
are not timed. Work in this process is timed by its processor time, work of others by the clock. Ratios are geometric means
over paired rounds with 95 % intervals. Set OMP_NUM_THREADS=1: torch gets one thread here in any case, and the files come
from the system's cache.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import parser, save
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from timm.data import Mixup, create_dataset, create_loader
from torchvision import transforms

from uhkd.commands.comparing.cost import geometric_mean
from uhkd.data import ArraySource, Augmentation, BatchPlan, augment_batch, open_data, train_loader

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
CLASSES = 10
SMALL, LARGE = 64, 32  # images a batch at 32 and at 224 px
TIMED = {"pad, flip": 200, "pad, flip, mixup, cutmix": 100, "pad, flip, RandAugment": 30}
TIMED_LARGE = 10
QUALITY = 90

Maker = Callable[[], Iterator[Any]]


class Images(torch.utils.data.Dataset):
    """Images in memory as torchvision's CIFAR-100 gives them; timm sets `transform`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels, self.transform = images, labels, None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


def small_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` handwritten digits enlarged to 32x32 (N,32,32,3) uint8, tinted so that colours matter, and labels."""
    bunch = load_digits()
    tint = np.random.default_rng(0).uniform(0.3, 1, (count, 3))
    images = []
    for i in range(count):
        grey = Image.fromarray((bunch.images[i % 1797] * (255 / 16)).astype(np.uint8)).resize((32, 32))
        images.append((np.asarray(grey)[..., None] * tint[i]).astype(np.uint8))
    return np.stack(images), np.resize(bunch.target, count)


def write_photographs(root: Path, count: int) -> None:
    """`count` JPEG files of 500x375 pixels in class folders, cut from two photographs."""
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    for i in range(count):
        photograph = photographs[i % 2]
        top, left = (int(rng.integers(have - want)) for have, want in zip(photograph.shape, (375, 500), strict=False))
        folder = root / f"class{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + 375, left : left + 500]).save(folder / f"{i}.jpg", quality=QUALITY)


def ours(source: Any, augmentation: Augmentation, batch: int, workers: int, epoch: int) -> Iterator[Any]:
    """The library's loader."""
    return iter(
        train_loader(source, augmentation, BatchPlan(epoch, batch, epochs=100), num_classes=CLASSES, workers=workers)
    )


def one_by_one(source: ArraySource, augmentation: Augmentation, batch: int, epoch: int) -> Iterator[Any]:
    """One view after the other, as the loader worked before."""
    for number in itertools.count():
        order = np.random.default_rng((epoch, number)).permutation(len(source))
        for start in range(0, len(order) - batch + 1, batch):
            pairs = [
                augment_batch(source, i, seed=epoch, view=number, augmentation=augmentation, num_classes=CLASSES)
                for i in order[start : start + batch, None]
            ]
            targets = torch.cat([target for _, target in pairs if target is not None])
            yield torch.cat([image for image, _ in pairs]).float().div_(255), targets


def timms(dataset: Any, size: int, batch: int, workers: int, augmentation: Augmentation) -> Iterator[Any]:
    """timm's loader with the transforms that correspond to the augmentation."""
    loader = create_loader(
        dataset,
        (3, size, size),
        batch,
        is_training=True,
        use_prefetcher=False,
        scale=(augmentation.crop_scale, 1.0),
        color_jitter=None,
        auto_augment=augmentation.randaugment,
        interpolation="bicubic",
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    if augmentation.crop == "pad":
        loader.dataset.transform.transforms[0] = transforms.RandomCrop(size, padding=size // 8, padding_mode="reflect")
    for step in loader.dataset.transform.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    mixup = Mixup(augmentation.mixup, augmentation.cutmix, num_classes=CLASSES) if augmentation.mixes else None
    while True:
        for images, labels in loader:
            yield (images, labels) if mixup is None else mixup(images, labels)


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm asks for 0 bits at full magnitude, which Pillow refuses from 13 on."""
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def speed(make: Maker, batches: int, batch: int, workers: int) -> float:
    """Images per second and core over `batches` batches of a new iterator.

    Without workers by processor time, which on a shared machine is nearer to what a core of one's own would take.
    """
    clock = time.perf_counter if workers else time.process_time
    made = make()
    for _ in range(2 * workers + 2):  # what the processes have ready before anyone asks is not timed
        next(made)
    began = clock()
    for _ in range(batches):
        next(made)
    seconds = clock() - began
    del made
    return batches * batch / seconds / max(1, workers)


def paths(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, dict[str, Any]]:
    """By name: how many batches of how many images, by how many processes, and the makers of each loader by round."""
    found: dict[str, dict[str, Any]] = {}
    source, dataset = ArraySource(images, labels), Images(images, labels)
    extras = {"mixup, cutmix": {"mixup": 0.8, "cutmix": 1.0}, "RandAugment": {"randaugment": RANDAUGMENT}}
    for name, batches in TIMED.items():
        extra = next((options for key, options in extras.items() if name.endswith(key)), {})
        augmentation = Augmentation((32, 32), crop="pad", flip=True, **extra)
        found[f"32 px in memory: {name}"] = {
            "batches": batches,
            "batch": SMALL,
            "workers": 0,
            "loaders": {
                "uhkd": lambda n, a=augmentation: ours(source, a, SMALL, 0, n),
                "one by one": lambda n, a=augmentation: one_by_one(source, a, SMALL, n),
                "timm": lambda n, a=augmentation: timms(dataset, 32, SMALL, 0, a),
            },
        }
    resized = Augmentation((224, 224), crop="resized", flip=True, crop_scale=0.08)
    for workers in (0, 2):
        found[f"224 px from JPEG files: resized crop, flip; {workers} workers"] = {
            "batches": TIMED_LARGE,
            "batch": LARGE,
            "workers": workers,
            "loaders": {
                # opened again: images decoded in an earlier round must not be remembered
                "uhkd": lambda n, w=workers: ours(open_data(folder).train, resized, LARGE, w, n),
                "timm": lambda n, w=workers: timms(create_dataset("", str(folder)), 224, LARGE, w, resized),
            },
        }
    return found


def main() -> None:
    """Measure and write."""
    arguments = parser(__doc__, rounds=10).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = 10_000
    files = (TIMED_LARGE + 8) * LARGE * 10 // 9 + LARGE  # a tenth is cut for validation
    with tempfile.TemporaryDirectory() as place:
        write_photographs(Path(place), files)
        measured = measure(paths(*small_images(count), Path(place)), arguments.rounds)
    settings = {
        "rounds": arguments.rounds,
        "images_32px": count,
        "jpeg_files": files,
        "jpeg_size": [375, 500],
        "jpeg_quality": QUALITY,
        "randaugment": RANDAUGMENT,
        "mixup": 0.8,
        "cutmix": 1.0,
        "crop_scale": 0.08,
    }
    save(arguments.out, "Images per second and core", settings, paths=measured)


def measure(found: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """All rounds, and ratios to each other loader, printed as they are known."""
    jobs = [(name, loader) for name, path in found.items() for loader in path["loaders"]]
    speeds: dict[str, dict[str, list[float]]] = {name: {key: [] for key in found[name]["loaders"]} for name in found}
    for number in range(rounds):
        for name, loader in jobs if number % 2 else reversed(jobs):
            path = found[name]
            make = path["loaders"][loader]
            measured = speed(lambda m=make, n=number: m(n), path["batches"], path["batch"], path["workers"])
            speeds[name][loader].append(round(measured, 2))
    report = {}
    for name, by_loader in speeds.items():
        report[name] = {key: found[name][key] for key in ("batches", "batch", "workers")}
        report[name]["images_per_second_and_core"] = by_loader
        report[name]["ratios"] = {}
        line = [f"{key} {np.median(values):,.0f}" for key, values in by_loader.items()]
        for other in (key for key in by_loader if key != "uhkd"):
            ratio = geometric_mean(by_loader["uhkd"], by_loader[other])
            report[name]["ratios"][f"uhkd / {other}"] = asdict(ratio)
            line.append(f"uhkd / {other} {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
        print(f"{name}\n  {', '.join(line)}", flush=True)
    return report


if __name__ == "__main__":
    main()
