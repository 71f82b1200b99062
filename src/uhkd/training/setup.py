"""What every training settles before its first step: device, precision, sizes, augmentation, folder; each with its reason."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from uhkd.data import Augmentation, Data, Sharding, in_memory, open_data, usable_cores
from uhkd.launching import end_with_launcher
from uhkd.recipe import DataWords, MachineWords, TrainRecipe, ViewWords
from uhkd.runs import RunFolder
from uhkd.taps import TappedModel
from uhkd.telling import say, verbose
from uhkd.training import FUSED, make_deterministic

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)

_SMALL = 64  # pixels: up to here a padded crop keeps more of the picture than a resized one


def fast_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(word in flags.read_text(encoding="utf-8") for word in ("avx512_bf16", "amx_bf16"))


def choose_device(recipe: MachineWords) -> tuple[str, str]:
    """(device, precision), both settled.

    Raises:
        ValueError: when a GPU is asked for and there is none.
    """
    device = recipe.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device=cuda was asked for and torch sees no GPU; use device=auto, or install a CUDA build of torch"
        )
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16(device) else "fp32"
    return device, precision


def tell_machine(recipe: MachineWords, device: str, precision: str) -> None:
    """Say what a training runs on, and why in this way."""
    if recipe.precision != "auto":
        why = "as asked"
    elif precision == "bf16":
        why = f"the {'GPU' if device == 'cuda' else 'processor'} multiplies bfloat16 natively"
    else:
        why = f"the {'GPU' if device == 'cuda' else 'processor'} has no fast bfloat16"
    chosen = ["channels last"]
    if getattr(recipe, "optimizer", None) in FUSED:
        chosen.append("fused optimizer")
    if (compiled := getattr(recipe, "compile", None)) is not None:
        hardly = " (it hardly pays on a CPU: docs/performance.md)" if device == "cpu" else ""
        chosen.append(f"{'compiled' if compiled else 'not compiled'}{hardly}")
    if recipe.deterministic and device == "cuda":
        chosen.append("deterministic")
    threads = torch.get_num_threads()
    chosen.append(f"{threads} CPU thread{'s' * (threads > 1)}")
    say(f"running on {device} in {precision} ({why}), {', '.join(chosen)}")


class _Bf16(MixedPrecision):
    """bf16 autocast that leaves a module's inputs alone: Fabric's own would round images, targets and spectra too."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(device: str, precision: str, deterministic: bool = False) -> Fabric:
    """Fabric on one device, or on as many processes as torchrun started, on this machine and on others.

    deterministic: see `make_deterministic`; a CPU repeats to the bit by itself.
    """
    if deterministic and device == "cuda":
        make_deterministic()
    here, everywhere = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    end_with_launcher()
    # Fabric advises to round float32 products on a GPU; what runs in float32 here, spectra and losses, does so to be exact
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    if not verbose():  # each process would say that it joins
        logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=everywhere // here,
        strategy="ddp" if everywhere > 1 else "auto",
        plugins=_Bf16(device) if precision == "bf16" else None,
    )
    fabric.launch()
    return fabric


def open_recipe_data(recipe: DataWords, data: Any = None, class_names: Sequence[str] | None = None) -> Data:
    """The recipe's data, announced. `data` replaces the recipe's word when a user gives a Dataset object."""
    opened = open_data(
        recipe.data if data is None else data,
        val_fraction=recipe.val_fraction,
        train_limit=recipe.train_limit,
        skip_bad_images=recipe.skip_bad_images,
        class_names=class_names,
        shards=Sharding(recipe.shards_at_a_time, recipe.lanes, recipe.shard_cache, recipe.shard_cache_gb),
        labels=not recipe.unlabelled,
    )
    test = "" if opened.test is None else f", {len(opened.test)} test"
    say(
        f"data {opened.name}: {len(opened.train)} training, {len(opened.val)} validation{test} images, "
        f"{len(opened.classes) or 'no'} classes"
    )
    for note in opened.notes:
        say(f"  {note}")
    return opened


def image_size(data: Data, networks: Sequence[TappedModel]) -> tuple[int, int]:
    """As large as the largest of the networks wants images, but never larger than they all are on disk.

    Each network resizes for itself, and upsampling twice would only blur.
    """
    height, width = (max(n.input_size[axis] for n in networks) for axis in (0, 1))
    if data.native_size is None:
        return height, width
    return min(height, data.native_size[0]), min(width, data.native_size[1])


def choose_augmentation(recipe: ViewWords, data: Data, networks: Sequence[TappedModel]) -> Augmentation:
    """The size every image is brought to (see `image_size`), and how it is varied; the trained network comes first."""
    size = image_size(data, networks)
    crop = recipe.crop
    if crop == "auto":
        # by the trained network alone, so that a scratch baseline sees what a distilled student sees
        crop = "pad" if max(networks[0].input_size) <= _SMALL else "resized"
    flip = data.flip if recipe.flip is None else recipe.flip
    names = ("mixup", "cutmix", "crop_scale", "randaugment", "color_jitter", "erasing")
    return Augmentation(size, crop, flip, **{name: getattr(recipe, name) for name in names})


def tell_augmentation(own: Augmentation) -> None:
    """Say how large images are and how they are varied."""
    said = [f"crop {own.crop}" + (f" from {own.crop_scale:.0%} of the area" if own.crop == "resized" else "")]
    said.append(f"flip {'on' if own.flip else 'off'}")
    if own.randaugment is not None:
        said.append(f"randaugment {own.randaugment}")
    if own.color_jitter:
        left_out = "" if own.jitters else " left out beside randaugment"
        said.append(f"color_jitter {own.color_jitter:g}{left_out}")
    said += [f"{name} {getattr(own, name):g}" for name in ("erasing", "mixup", "cutmix") if getattr(own, name)]
    say(f"images at {own.size[0]}x{own.size[1]}, {', '.join(said)}")


def tell_loss(weights: Mapping[str, float], *, labels: bool) -> None:
    """Say what a loss of more than the cross-entropy is made of: its first values surprise beside finetune's.

    labels: without them there is no cross-entropy.
    """
    parts = [f"{weight:g} {name}" for name, weight in weights.items() if weight and (labels or name != "ce")]
    if len(parts) > 1:
        end = ": not to be compared with that of finetune, which is ce alone" if labels else ""
        say(f"  loss = {' + '.join(parts)}{end}")


def choose_workers(recipe: MachineWords, data: Data, device: str) -> int:
    """Loader processes: for small images in memory none, or up to 4 to feed a GPU; otherwise one a core, at most 8."""
    if recipe.workers is not None:
        return recipe.workers
    cores = usable_cores()
    if in_memory(data.train) and data.native_size is not None and max(data.native_size) <= _SMALL:
        # A GPU would wait while this process makes a batch; a few others have the next ready. A CPU is busy either way.
        return min(4, cores) if device == "cuda" else 0
    return min(8, cores)


def run_folder(recipe: TrainRecipe, label: str) -> RunFolder:
    """The folder named by the recipe, or a new one under runs/."""
    name = recipe.out or f"runs/{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder(name)


def fit_batch(recipe: RecipeT, data: Data) -> RecipeT:
    """The recipe with a batch that the data can fill: one that was not asked for shrinks, one that was is refused.

    Raises:
        ValueError: for a batch larger than the training part, or pieces too small to standardise features over.
    """
    images = len(data.train)
    if "batch_size" not in recipe.model_fields_set and recipe.accumulate == 1 and recipe.batch_size > images // 4:
        fitting = max(1, images // 4 // recipe.lanes) * recipe.lanes
        recipe = recipe.model_copy(update={"batch_size": max(2, fitting)})
        say(f"batch size {recipe.batch_size}, a quarter of the {images} training images")
    if recipe.batch_size > images:
        raise ValueError(
            f"batch_size {recipe.batch_size} is larger than the training part of {images} images; "
            f"use --batch-size {max(2, images // 4)} or less"
        )
    if recipe.batch_size // recipe.accumulate < 2:
        raise ValueError(
            f"batch_size {recipe.batch_size} in {recipe.accumulate} parts leaves {recipe.batch_size // recipe.accumulate} "
            "image a part; batch statistics need at least 2"
        )
    return recipe
