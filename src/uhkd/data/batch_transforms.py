"""Views of many images at once: equal, to the bit, to those that `view` makes one by one."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from uhkd.data.augment import Augmentation, MixParameters, cutmix_, draw_mix, geometry, mirror, mixup_pair
from uhkd.data.color_transforms import erase_, jitter, rand_augment_all_
from uhkd.data.rng import streams, uniforms
from uhkd.data.sampler import mix_candidates
from uhkd.data.sources import ImageSource, InMemoryImages, in_memory, view_keys


def augment_batch(
    source: ImageSource,
    indices: Int[np.ndarray, " b"],
    *,
    seed: int,
    view: int,
    augmentation: Augmentation,
    num_classes: int,
) -> tuple[UInt8[Tensor, "b 3 h w"], Float[Tensor, "b k"] | None]:
    """Return view number `view` of the images `indices` (one or more), and their targets: `view` of each, stacked.

    Images that lie in memory at the augmentation's size are cropped and flipped as a whole; others, and resized crops,
    one by one.

    Raises:
        UhkdError: an image that cannot be read, named.
    """
    images = augment_unmixed(source, indices, seed=seed, view=view, augmentation=augmentation)
    mixes = None
    if augmentation.mixes:
        numbers = indices.tolist()
        own = streams("mix", seed, view, view_keys(source, indices).tolist())
        mixes = [
            draw_mix(index, mix_candidates(source, index), augmentation, rng)
            for index, rng in zip(numbers, own, strict=True)
        ]
        others = np.array([mix.partner for mix in mixes])
        _mix_(images, augment_unmixed(source, others, seed=seed, view=view, augmentation=augmentation), mixes)
    return torch.from_numpy(images), _targets(source.labels, indices, mixes, num_classes)


def augment_unmixed(
    source: ImageSource, indices: Int[np.ndarray, " b"], *, seed: int, view: int, augmentation: Augmentation
) -> UInt8[np.ndarray, "b 3 h w"]:
    """Return the views before any mixing, freshly allocated.

    Raises:
        UhkdError: an image that cannot be read, named.
    """
    images = _cut(source, indices, seed, view, augmentation)
    numbers = view_keys(source, indices).tolist()
    if augmentation.randaugment is not None:
        rand_augment_all_(images, augmentation.randaugment, streams("randaugment", seed, view, numbers))
    if augmentation.jitters:
        for image, rng in zip(images, streams("jitter", seed, view, numbers), strict=True):
            image[:] = jitter(image, augmentation.color_jitter, rng)
    if augmentation.erasing:
        for image, rng in zip(images, streams("erasing", seed, view, numbers), strict=True):
            erase_(image, augmentation.erasing, rng)
    return images


def _cut(source: ImageSource, indices: np.ndarray, seed: int, view: int, augmentation: Augmentation) -> np.ndarray:
    if augmentation.crop != "resized":
        found = in_memory(source, indices)
        if found is not None and tuple(found.images.shape[-2:]) == tuple(augmentation.size):
            return _cut_held(found, view_keys(source, indices), seed, view, augmentation)
    own = zip(indices.tolist(), view_keys(source, indices).tolist(), strict=True)
    return np.stack([geometry(source.image(i), a, seed=seed, view=view, augmentation=augmentation) for i, a in own])


def _cut_held(
    found: InMemoryImages, view_keys: np.ndarray, seed: int, view: int, augmentation: Augmentation
) -> np.ndarray:
    """Shift and flip by index arithmetic: first whole rows are gathered, then the columns of each image are set in order."""
    images, positions = found
    if augmentation.crop == "none" and not augmentation.flip:
        return images.numpy().take(positions, axis=0)
    height, width = augmentation.size
    draws = uniforms("geometry", seed, view, view_keys)
    rows = np.broadcast_to(np.arange(height), (len(view_keys), height))
    columns = np.broadcast_to(np.arange(width), (len(view_keys), width))
    if augmentation.crop == "pad":
        rows = mirror(rows + _shifts(height, draws[:, 1]), height)
        columns = mirror(columns + _shifts(width, draws[:, 2]), width)
    if augmentation.flip:
        columns = np.where(draws[:, :1] < 0.5, columns[:, ::-1], columns)
    planes = 3 * positions[:, None] + np.arange(3)
    lines = images.view(-1, width).numpy().take(planes[:, :, None] * height + rows[:, None, :], axis=0)
    places = torch.from_numpy(columns)[:, None, None, :].expand(lines.shape)
    return torch.from_numpy(lines).gather(3, places).numpy()


def _shifts(length: int, draws: np.ndarray) -> np.ndarray:
    pad = length // 8
    return (draws * (2 * pad + 1)).astype(np.int64)[:, None] - pad


def _mix_(images: np.ndarray, others: np.ndarray, mixes: list[MixParameters]) -> None:
    blended = [row for row, mix in enumerate(mixes) if mix.box is None]
    for row, mix in enumerate(mixes):
        if mix.box is not None:
            cutmix_(images[row], others[row], mix.box)
    if blended:
        weights = np.array([mixes[row].weight for row in blended], dtype=np.int32)[:, None, None, None]
        images[blended] = mixup_pair(images[blended], others[blended], weights)


def _targets(
    labels: np.ndarray | None, indices: np.ndarray, mixes: list[MixParameters] | None, num_classes: int
) -> Float[Tensor, "b k"] | None:
    if labels is None:
        return None
    targets = np.zeros((len(indices), num_classes), dtype=np.float32)
    rows = np.arange(len(indices))
    if mixes is None:
        targets[rows, labels[indices]] = 1.0
    else:
        shares = np.array([mix.share for mix in mixes])
        partners = np.array([mix.partner for mix in mixes])
        targets[rows, labels[indices]] += shares.astype(np.float32)
        targets[rows, labels[partners]] += (1.0 - shares).astype(np.float32)
    return torch.from_numpy(targets)
