"""Views of single images, computed one by one: the reference for the batched transforms; and loaders by flat options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uhkd.data import Augmentation, BatchPlan, ImageSource, Loader, ViewPlan, color_transforms, train_loader
from uhkd.data.augment import ONE, MixParameters, cutmix_, draw_mix, geometry, mixup_pair
from uhkd.data.color_transforms import erase_, jitter
from uhkd.data.rng import stream
from uhkd.data.sampler import mix_candidates
from uhkd.data.sources import view_keys


def view(
    source: ImageSource, index: int, *, seed: int, view: int, augmentation: Augmentation, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Return view number `view` of image `index`: (3,H,W) uint8, and its target (K,), None without labels.

    The target is one-hot, or the mixture of two classes by their share of the pixels. A mixed view's partner is the
    unmixed view of another image under the same (seed, view).
    """
    image = plain_view(source, index, seed=seed, view=view, augmentation=augmentation)
    mix = MixParameters(index, ONE, None, 1.0)
    if augmentation.mixes:
        key = int(view_keys(source, np.array([index]))[0])
        mix = draw_mix(index, mix_candidates(source, index), augmentation, stream("mix", seed, view, key))
        other = plain_view(source, mix.partner, seed=seed, view=view, augmentation=augmentation)
        if mix.box is None:
            image = mixup_pair(image, other, mix.weight)
        else:
            cutmix_(image, other, mix.box)
    if source.labels is None:
        return torch.from_numpy(image), None
    target = np.zeros(num_classes, dtype=np.float32)
    target[source.labels[index]] += np.float32(mix.share)
    target[source.labels[mix.partner]] += np.float32(1.0 - mix.share)
    return torch.from_numpy(image), torch.from_numpy(target)


def plain_view(source: ImageSource, index: int, *, seed: int, view: int, augmentation: Augmentation) -> np.ndarray:
    """Return the view before any mixing: (3,H,W) uint8 in new memory."""
    key = int(view_keys(source, np.array([index]))[0])
    image = geometry(source.image(index), key, seed=seed, view=view, augmentation=augmentation)
    if augmentation.randaugment is not None:
        # not rand_augment_all_: under pytest the type check of its generators draws from Python's global generator
        with color_transforms._preserve_globals():
            rng = stream("randaugment", seed, view, key)
            image = np.array(color_transforms._rand_augment(image, augmentation.randaugment, rng), order="C")
    if augmentation.jitters:
        image = jitter(image, augmentation.color_jitter, stream("jitter", seed, view, key))
    if augmentation.erasing:
        erase_(image, augmentation.erasing, stream("erasing", seed, view, key))
    return image


def training_loader(source: ImageSource, augmentation: Augmentation, **options: Any) -> Loader:
    """Return `train_loader`, the fields of its plans given as options: `views` is ViewPlan.count, `view_seed` its seed."""
    plan = {field.name: options.pop(field.name) for field in fields(BatchPlan) if field.name in options}
    names = {"views": "count", "view_seed": "seed", "record_reader": "record_reader"}
    views = {names[name]: options.pop(name) for name in list(options) if name in names}
    return train_loader(source, augmentation, BatchPlan(**plan), views=ViewPlan(**views), **options)
