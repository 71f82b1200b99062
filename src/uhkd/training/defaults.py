"""Options that a recipe leaves open, chosen once data and network are known.

Batch size, epochs, warm-up, image size, initial weights.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median_low
from typing import Any, TypeVar

from torch import nn

from uhkd.cache import TeacherCache
from uhkd.console import log_info
from uhkd.data import DataSplits
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.models import ModelConfig, offers_pretrained
from uhkd.recipe import DistillRecipe, FinetuneRecipe, TrainRecipe, build
from uhkd.runs import RunFolder
from uhkd.training.geometry import image_shapes

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)

# measured on photographs (docs/steps.md)
_STEPS = 2000
_BATCHES = (16, 128)
_EPOCHS = (30, 160)
_SIDES = range(32, 65, 16)  # px of the networks of this package; multiples of their strides and patches
LENGTH = ("batch_size", "epochs", "warmup_epochs")


def default_length(images: int) -> tuple[int, int]:
    """Return batch size and epochs for a number of training images: some 2,000 optimiser steps, and at least 30 epochs.

    The batch is the power of two nearest to a fortieth of the images, 16 to 128, and at most a quarter of the images. The epochs
    are 30 to 160.
    """
    batch = min(max(2 ** round(math.log2(max(images, 1) / 40)), _BATCHES[0]), _BATCHES[1])
    epochs = min(max(round(_STEPS * batch / max(images, 1)), _EPOCHS[0]), _EPOCHS[1])
    return max(2, min(batch, images // 4)), epochs


def choose_length(recipe: RecipeT, images: int, processes: int = 1) -> RecipeT:
    """Return the recipe with numbers for batch size, epochs and warm-up; those not given depend on the images alone.

    images: of the training split.

    Raises:
        UhkdError: for a batch larger than the training split or not divisible, or for parts of a batch too small for batch
            statistics.
    """
    batch, epochs = default_length(images)
    unit = math.lcm(recipe.grad_accum_steps, recipe.shuffle_streams, processes)
    chosen: dict[str, Any] = {}
    if recipe.batch_size is None:
        chosen["batch_size"] = max(batch // unit, 1, math.ceil(2 * recipe.grad_accum_steps / unit)) * unit
    if recipe.epochs is None:
        chosen["epochs"] = epochs
    if recipe.warmup_epochs is None:
        chosen["warmup_epochs"] = 0.0
    recipe = with_options(recipe, chosen)
    if chosen.keys() & {"batch_size", "epochs"}:
        parts = [f"{name.replace('_', ' ')} {chosen[name]}" for name in ("batch_size", "epochs") if name in chosen]
        steps = recipe.epochs * (images // recipe.batch_size)
        log_info(f"{' and '.join(parts)} chosen from {images:,} training images: {steps:,} optimiser steps")
    _check_batch(recipe, images, processes)
    return recipe


def _check_batch(recipe: TrainRecipe, images: int, processes: int) -> None:
    batch, parts = recipe.batch_size, recipe.grad_accum_steps
    if batch > images:
        raise UhkdError(
            f"batch_size {batch} is larger than the {images} images of the training split; "
            f"use --batch-size {max(2, images // 4)}, or another one up to {images}"
        )
    if batch // parts < 2:
        raise UhkdError(
            f"batch_size {batch} in {parts} parts leaves {batch // parts} image a part; batch statistics need at least 2"
        )
    if batch % processes:
        raise UhkdError(
            f"batch_size {batch} must be a multiple of the number of processes, {processes}; for example "
            f"--batch-size {-(-batch // processes) * processes}"
        )


def choose_start(recipe: RecipeT, *, module: bool) -> RecipeT:
    """Return the recipe with initial weights for a network by name: pretrained where its library offers weights, else random.

    module: whether a module replaces the name; it keeps its weights.
    """
    if not isinstance(recipe, FinetuneRecipe) or recipe.start is not None:
        return recipe
    start = "pretrained" if not module and offers_pretrained(recipe.model) else "random"
    if start == "random" and not module:
        log_info(
            f"{recipe.model} has no pretrained weights: it starts from random ones (--start FILE: from a weights file)"
        )
    return with_options(recipe, {"start": start})


def choose_image_size(
    recipe: RecipeT, data: DataSplits, teacher: nn.Module | Sequence[nn.Module | None] | None = None, *, module: bool
) -> RecipeT:
    """Return the recipe with an image size for a network of this package that starts from random weights.

    Such a network is made for 32 px and fits other sizes. Larger images are used at up to 64 px, and in a distillation at most at
    the size of the teacher's input.

    data: the training images. teacher: module in place of the recipe's name, or a list of them. module: whether a module
    replaces the network's name; its size is not chosen here.
    """
    if isinstance(recipe, DistillRecipe):
        name, start = recipe.student, recipe.student_start
    else:
        assert isinstance(recipe, FinetuneRecipe)
        name, start = recipe.model, recipe.start
    if module or recipe.image_size is not None or start != "random" or not name.startswith("uhkd/"):
        return recipe
    shapes = image_shapes(data)
    limits = [median_low(map(min, shapes))] if shapes else [_SIDES[0]]
    if isinstance(recipe, DistillRecipe):
        teachers = recipe.teacher_recipes()
        modules = teacher if isinstance(teacher, Sequence) else [teacher] * len(teachers)
        limits += [_largest_side(own, given) for (own, _), given in zip(teachers, modules, strict=True)]
    side = max((side for side in _SIDES if side <= min(limits)), default=_SIDES[0])
    if side == _SIDES[0]:
        return recipe
    log_info(f"image size {side} px chosen for {name} from the images (--image-size: another)")
    return with_options(recipe, {"image_size": side})


def _largest_side(recipe: DistillRecipe, module: nn.Module | None) -> int:
    """Return the longer side of a teacher's input in pixels, the largest of `_SIDES` if it is not stored anywhere."""
    if isinstance(module, FeatureExtractor):
        return max(module.input_size)
    if recipe.teacher_cache is not None:
        return max(TeacherCache(recipe.teacher_cache).manifest.augmentation.size)
    if module is None and isinstance(recipe.teacher, str):
        run = RunFolder(Path(recipe.teacher).expanduser())
        with suppress(UhkdError):  # reported when the teacher is loaded
            if run.has_model():
                return max(ModelConfig.from_json(run.read_config()).image_size)
    return _SIDES[-1]


def keep_choices(recipe: RecipeT, folder: RunFolder) -> RecipeT:
    """Return the recipe of a run to resume with the values that the run has for options left open now."""
    names = [
        name for name in (*LENGTH, "start", "lr", "image_size", "val_fraction") if getattr(recipe, name, "") is None
    ]
    before = folder.read_recipe()
    return with_options(recipe, {name: before[name] for name in names if name in before})


def with_options(recipe: RecipeT, options: dict[str, Any]) -> RecipeT:
    """Return the recipe with other options, validated as a whole.

    Raises:
        RecipeError: for options that contradict others, such as a warm-up longer than the chosen epochs.
    """
    return build(type(recipe), recipe.model_dump(exclude_unset=True) | options) if options else recipe
