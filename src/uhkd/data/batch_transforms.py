"""Views of a batch of images; each is bitwise identical to that of the image alone."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from uhkd.data.augment import Augmentation, MixParameters, cutmix_, draw_mix, geometry, mirror, mixup_pair
from uhkd.data.color_transforms import erase_, jitter, rand_augment_all_
from uhkd.data.rng import streams
from uhkd.data.sampler import mix_candidates
from uhkd.data.sources import ImageSource, InMemoryImages, images_in_memory, view_keys


def augment_batch(
    source: ImageSource,
    indices: Int[np.ndarray, " b"],
    *,
    seed: int,
    view: int,
    augmentation: Augmentation,
    num_classes: int | None,
) -> tuple[UInt8[Tensor, "b 3 h w"], Float[Tensor, "b k"] | None]:
    """Return view number `view` of the images `indices` (one or more), and their targets (None without labels or num_classes).

    A target is one-hot, or the mixture of two classes by their share of the pixels. Images in memory at the augmentation's
    size are cropped and flipped as one array; others, and resized crops, one by one. A mixed view's partner is the unmixed
    view of another image under the same (seed, view); see `mix_candidates`.

    Raises:
        UhkdError: an image that cannot be read, with its name.
    """
    images = augment_unmixed(source, indices, seed=seed, view=view, augmentation=augmentation)
    mixes = None
    if augmentation.mixes:
        rngs = streams("mix", seed, view, view_keys(source, indices).tolist())
        mixes = [
            draw_mix(index, mix_candidates(source, index), augmentation, rng)
            for index, rng in zip(indices.tolist(), rngs, strict=True)
        ]
        partners = np.array([mix.partner for mix in mixes])
        _mix_(images, augment_unmixed(source, partners, seed=seed, view=view, augmentation=augmentation), mixes)
    return torch.from_numpy(images), _targets(source.labels, indices, mixes, num_classes)


def augment_unmixed(
    source: ImageSource, indices: Int[np.ndarray, " b"], *, seed: int, view: int, augmentation: Augmentation
) -> UInt8[np.ndarray, "b 3 h w"]:
    """Return the views before any mixing, in new memory.

    Raises:
        UhkdError: an image that cannot be read, with its name.
    """
    images = _crop(source, indices, seed, view, augmentation)
    keys = view_keys(source, indices).tolist()
    if augmentation.randaugment is not None:
        rand_augment_all_(images, augmentation.randaugment, streams("randaugment", seed, view, keys))
    if augmentation.jitters:
        for image, rng in zip(images, streams("jitter", seed, view, keys), strict=True):
            image[:] = jitter(image, augmentation.color_jitter, rng)
    if augmentation.erasing:
        for image, rng in zip(images, streams("erasing", seed, view, keys), strict=True):
            erase_(image, augmentation.erasing, rng)
    return images


def _crop(source: ImageSource, indices: np.ndarray, seed: int, view: int, augmentation: Augmentation) -> np.ndarray:
    keys = view_keys(source, indices)
    if augmentation.crop != "resized":
        cached = images_in_memory(source, indices)
        if cached is not None and tuple(cached.images.shape[-2:]) == tuple(augmentation.size):
            return _crop_in_memory(cached, keys, seed, view, augmentation)
    pairs = zip(indices.tolist(), keys.tolist(), strict=True)
    return np.stack([geometry(source.image(i), k, seed=seed, view=view, augmentation=augmentation) for i, k in pairs])


def _crop_in_memory(
    cached: InMemoryImages, keys: np.ndarray, seed: int, view: int, augmentation: Augmentation
) -> np.ndarray:
    """Shift and flip by index arithmetic: whole rows are gathered first, then the columns of each image are permuted."""
    images, positions = cached
    if augmentation.crop == "none" and not augmentation.flip:
        return images.numpy().take(positions, axis=0)
    height, width = augmentation.size
    draws = np.stack([rng.random(3) for rng in streams("geometry", seed, view, keys.tolist())])
    rows = np.broadcast_to(np.arange(height), (len(keys), height))
    columns = np.broadcast_to(np.arange(width), (len(keys), width))
    if augmentation.crop == "pad":
        rows = mirror(rows + _shifts(height, draws[:, 1]), height)
        columns = mirror(columns + _shifts(width, draws[:, 2]), width)
    if augmentation.flip:
        columns = np.where(draws[:, :1] < 0.5, columns[:, ::-1], columns)
    planes = 3 * positions[:, None] + np.arange(3)
    lines = images.view(-1, width).numpy().take(planes[:, :, None] * height + rows[:, None, :], axis=0)
    columns = torch.from_numpy(columns)[:, None, None, :].expand(lines.shape)
    return torch.from_numpy(lines).gather(3, columns).numpy()


def _shifts(length: int, draws: np.ndarray) -> np.ndarray:
    pad = length // 8
    return (draws * (2 * pad + 1)).astype(np.int64)[:, None] - pad


def _mix_(images: np.ndarray, others: np.ndarray, mixes: list[MixParameters]) -> None:
    mixup_rows = [row for row, mix in enumerate(mixes) if mix.box is None]
    for row, mix in enumerate(mixes):
        if mix.box is not None:
            cutmix_(images[row], others[row], mix.box)
    if mixup_rows:
        weights = np.array([mixes[row].weight for row in mixup_rows], dtype=np.int32)[:, None, None, None]
        images[mixup_rows] = mixup_pair(images[mixup_rows], others[mixup_rows], weights)


def _targets(
    labels: np.ndarray | None, indices: np.ndarray, mixes: list[MixParameters] | None, num_classes: int | None
) -> Float[Tensor, "b k"] | None:
    if labels is None or num_classes is None:
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
