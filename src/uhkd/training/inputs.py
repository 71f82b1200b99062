"""The inputs of a training: data, image size and augmentation, and the run folder."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lightning_fabric import Fabric

from uhkd.console import escape, log_info, pluralize
from uhkd.data import Augmentation, Columns, DataSplits, ShardOptions, open_data
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.recipe import AugmentationOptions, DataOptions, TrainRecipe
from uhkd.runs import RunFolder
from uhkd.training.geometry import log_geometry

RecipeT = TypeVar("RecipeT", bound=DataOptions)

_SMALL = 64  # pixels: up to this size a padded crop keeps more of the image than a resized crop
_FEW = 50  # validation images below which a log line gives the uncertainty of their accuracy


@dataclass(kw_only=True)
class Inputs:
    """The inputs with which networks are prepared.

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
        """Return the initial weights of a network: `start`, but in a dry run "random" instead of "pretrained"."""
        if not self.dry_run or start != "pretrained":
            return start
        log_info(f"  {name}: pretrained weights would be downloaded, or read from the weights cache (see uhkd doctor)")
        return "random"


def open_recipe_data(recipe: DataOptions, data: Any = None) -> DataSplits:
    """Return the recipe's data and log its size; `data`, a Dataset or opened data, replaces its name."""
    if isinstance(data, DataSplits):
        return replace(data, resize=recipe.resize)
    opened = open_data(
        Columns.of(recipe, data),
        val_fraction=recipe.val_fraction,
        train_limit=recipe.train_limit,
        skip_bad_images=recipe.skip_bad_images,
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
    if (share := opened.val_fraction) is not None and (images := len(opened.val)) < _FEW:
        log_info(
            f"  an accuracy on {pluralize(images, 'image')} is uncertain by up to {98 / images**0.5:.0f} points (95 % interval); "
            f"val_fraction {share:g} sets the share of held-out images"
        )
    labels = opened.val.labels
    if len(opened.classes) > 1 and labels is not None and (labels == labels[0]).all():
        name = escape(opened.classes[int(labels[0])])
        log_info(
            f"warning: every validation image is of class {name}: the accuracy of the other classes is not measured"
        )
    return replace(opened, resize=recipe.resize)


def record_split(recipe: RecipeT, data: DataSplits) -> RecipeT:
    """Return the recipe with the share of held-out images by which its data was split, if it was left open."""
    return recipe.model_copy(update={"val_fraction": data.val_fraction}) if recipe.val_fraction is None else recipe


def recorded_split(run: RunFolder) -> float | None:
    """Return the share of held-out images in the recipe of a run or cache, None if there is none or it cannot be read."""
    with suppress(UhkdError):
        share = run.read_recipe().get("val_fraction") if run.started() else None
        return share if isinstance(share, float) and 0 < share < 1 else None
    return None


def image_size(data: DataSplits, networks: Sequence[FeatureExtractor]) -> tuple[int, int]:
    """Return the height and width of the images to load.

    They have the shape of the first network's input, the area of the largest one, and at most the pixels on disk. Each network
    resizes its input; upsampling twice would only blur.
    """
    shape, area = networks[0].input_size, max(n.input_size[0] * n.input_size[1] for n in networks)
    scales = [(area / (shape[0] * shape[1])) ** 0.5] * 2
    if data.native_size is not None:
        limits = [stored / side for stored, side in zip(data.native_size, shape, strict=True)]
        if data.resize != "squash":
            limits = [max(limits) if data.resize == "pad" else min(limits)] * 2
        scales = [min(pair) for pair in zip(scales, limits, strict=True)]
    height, width = (max(1, round(side * scale)) for side, scale in zip(shape, scales, strict=True))
    return height, width


def choose_augmentation(
    recipe: AugmentationOptions, data: DataSplits, networks: Sequence[FeatureExtractor]
) -> Augmentation:
    """Return the augmentation, with the size of `image_size`; the first of `networks` is the one that is trained."""
    size = image_size(data, networks)
    crop = recipe.crop
    if crop == "auto":
        # depends on the trained network alone, so that a scratch baseline has the same crops as a distilled student
        crop = "pad" if max(networks[0].input_size) <= _SMALL else "resized"
    flip = data.flip if recipe.flip is None else recipe.flip
    names = ("mixup", "cutmix", "crop_scale", "randaugment", "color_jitter", "erasing")
    return Augmentation(size, crop, flip, resize=data.resize, **{name: getattr(recipe, name) for name in names})


def log_augmentation(augmentation: Augmentation, data: DataSplits, networks: Sequence[FeatureExtractor]) -> None:
    """Log the image size and the augmentation, and see `log_geometry`."""
    scale = f" from {augmentation.crop_scale:.0%} of the area" if augmentation.crop == "resized" else ""
    parts = [f"crop {augmentation.crop}{scale}", f"flip {'on' if augmentation.flip else 'off'}"]
    if augmentation.randaugment is not None:
        parts.append(f"randaugment {augmentation.randaugment}")
    if augmentation.color_jitter:
        ignored = "" if augmentation.jitters else " ignored with randaugment"
        parts.append(f"color_jitter {augmentation.color_jitter:g}{ignored}")
    for name in ("erasing", "mixup", "cutmix"):
        if value := getattr(augmentation, name):
            parts.append(f"{name} {value:g}")
    resize = "" if augmentation.resize == "crop" else f" (resize {augmentation.resize})"
    log_info(f"images at {augmentation.size[0]}x{augmentation.size[1]}{resize}, {', '.join(parts)}")
    log_geometry(data, augmentation.size, networks)


def run_folder(recipe: TrainRecipe, label: str) -> RunFolder:
    """Return the run folder of the recipe, by default runs/LABEL-TIME."""
    return RunFolder(recipe.out or f"runs/{label}-{time.strftime('%Y%m%d-%H%M%S')}")
