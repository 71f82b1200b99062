"""What a training reads: its data, the size and augmentation of its images, a batch size that fits, and its run folder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_fabric import Fabric

from uhkd.console import log_info
from uhkd.data import Augmentation, DataSplits, ShardOptions, open_data
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.recipe import AugmentationOptions, DataOptions, TrainRecipe
from uhkd.runs import RunFolder

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)

_SMALL = 64  # pixels: up to here a padded crop keeps more of the picture than a resized one


@dataclass(kw_only=True)
class Inputs:
    """What networks are prepared with.

    Args:
        data: images and classes.
        fabric: device, precision and processes.
        folder: the run folder.
        workers: loader processes.
        dry_run: networks get random weights in place of pretrained ones; no teacher is evaluated, and none gets a trained head.
    """

    data: DataSplits
    fabric: Fabric
    folder: RunFolder
    workers: int
    dry_run: bool = False

    def start_of(self, name: str, start: str) -> str:
        """Return the first weights of a network: `start`, but "random" in place of "pretrained" in a dry run."""
        if not self.dry_run or start != "pretrained":
            return start
        log_info(
            f"  {name}: pretrained weights would be fetched, or taken from the weights cache (uhkd doctor names it)"
        )
        return "random"


def open_recipe_data(recipe: DataOptions, data: Any = None, class_names: Sequence[str] | None = None) -> DataSplits:
    """Return the recipe's data and print what it holds; `data`, a Dataset or data that is open already, replaces its name."""
    if isinstance(data, DataSplits):
        return data
    opened = open_data(
        recipe.data if data is None else data,
        val_fraction=recipe.val_fraction,
        train_limit=recipe.train_limit,
        skip_bad_images=recipe.skip_bad_images,
        class_names=class_names,
        shards=ShardOptions(recipe.shuffle_shards, recipe.shuffle_streams, recipe.shard_cache, recipe.shard_cache_gb),
        labels=not recipe.unlabelled,
    )
    test = "" if opened.test is None else f", {len(opened.test)} test"
    log_info(
        f"data {opened.name}: {len(opened.train)} training, {len(opened.val)} validation{test} images, "
        f"{len(opened.classes) or 'no'} classes"
    )
    for note in opened.notes:
        log_info(f"  {note}")
    return opened


def image_size(data: DataSplits, networks: Sequence[FeatureExtractor]) -> tuple[int, int]:
    """As large as the largest of the networks wants images, but never larger than they all are on disk.

    Each network resizes for itself, and upsampling twice would only blur.
    """
    height, width = (max(n.input_size[axis] for n in networks) for axis in (0, 1))
    if data.native_size is None:
        return height, width
    return min(height, data.native_size[0]), min(width, data.native_size[1])


def choose_augmentation(
    recipe: AugmentationOptions, data: DataSplits, networks: Sequence[FeatureExtractor]
) -> Augmentation:
    """The size every image is brought to (see `image_size`), and how it is varied; the trained network comes first."""
    size = image_size(data, networks)
    crop = recipe.crop
    if crop == "auto":
        # by the trained network alone, so that a scratch baseline sees what a distilled student sees
        crop = "pad" if max(networks[0].input_size) <= _SMALL else "resized"
    flip = data.flip if recipe.flip is None else recipe.flip
    names = ("mixup", "cutmix", "crop_scale", "randaugment", "color_jitter", "erasing")
    return Augmentation(size, crop, flip, **{name: getattr(recipe, name) for name in names})


def log_augmentation(own: Augmentation) -> None:
    """Say how large images are and how they are varied."""
    parts = [f"crop {own.crop}" + (f" from {own.crop_scale:.0%} of the area" if own.crop == "resized" else "")]
    parts.append(f"flip {'on' if own.flip else 'off'}")
    if own.randaugment is not None:
        parts.append(f"randaugment {own.randaugment}")
    if own.color_jitter:
        left_out = "" if own.jitters else " left out beside randaugment"
        parts.append(f"color_jitter {own.color_jitter:g}{left_out}")
    parts += [f"{name} {getattr(own, name):g}" for name in ("erasing", "mixup", "cutmix") if getattr(own, name)]
    log_info(f"images at {own.size[0]}x{own.size[1]}, {', '.join(parts)}")


def fit_batch(recipe: RecipeT, data: DataSplits) -> RecipeT:
    """The recipe with a batch that the data can fill: one that was not asked for shrinks, one that was is refused.

    Raises:
        UhkdError: for a batch larger than the training part, or pieces too small to standardise features over.
    """
    images = len(data.train)
    if "batch_size" not in recipe.model_fields_set and recipe.grad_accum_steps == 1 and recipe.batch_size > images // 4:
        fitting = max(1, images // 4 // recipe.shuffle_streams) * recipe.shuffle_streams
        recipe = recipe.model_copy(update={"batch_size": max(2, fitting)})
        log_info(f"batch size {recipe.batch_size}, a quarter of the {images} training images")
    if recipe.batch_size > images:
        raise UhkdError(
            f"batch_size {recipe.batch_size} is larger than the training part of {images} images; "
            f"use --batch-size {max(2, images // 4)} or less"
        )
    if recipe.batch_size // recipe.grad_accum_steps < 2:
        raise UhkdError(
            f"batch_size {recipe.batch_size} in {recipe.grad_accum_steps} parts leaves "
            f"{recipe.batch_size // recipe.grad_accum_steps} image a part; batch statistics need at least 2"
        )
    return recipe


def run_folder(recipe: TrainRecipe, label: str) -> RunFolder:
    """The folder named by the recipe, or a new one under runs/."""
    name = recipe.out or f"runs/{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder(name)
