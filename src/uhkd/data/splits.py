"""Stratified splits and subsets of labels."""

import numpy as np

from uhkd.data.rng import stream
from uhkd.errors import UhkdError


def default_fraction(images: int) -> float:
    """Return the share of a number of training images that is held out by default: a tenth, or 100 images, at most a fifth."""
    return min(max(0.1, 100 / max(images, 1)), 0.2)


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into a training and a validation split with the same shares of classes.

    Args:
        labels: (N,) integers.
        fraction: share of each class for validation, in (0,1), rounded, but at least one image and never all; a class of one
            image is in training.
        seed: of the split.

    Returns:
        Two sorted, disjoint arrays of positions: training, validation.

    Raises:
        UhkdError: fraction outside (0,1).
    """
    check_fraction(fraction)
    labels = np.asarray(labels)
    validation = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            validation.append(stream("split", seed, int(label)).permutation(members)[:count])
    val = np.sort(np.concatenate(validation)) if validation else np.empty(0, dtype=np.int64)
    train = np.setdiff1d(np.arange(len(labels)), val, assume_unique=True)
    return train.astype(np.int64), val.astype(np.int64)


def stratified_subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` sorted positions with the same shares of classes, at least one of each class.

    Raises:
        UhkdError: count below the number of classes or above the number of labels.
    """
    labels = np.asarray(labels)
    values, sizes = np.unique(labels, return_counts=True)
    if not len(values) <= count <= len(labels):
        raise UhkdError(
            f"a subset of {count} images: expected at least one for each of the {len(values)} classes "
            f"and at most all {len(labels)} images"
        )
    share = count * sizes / len(labels)
    take = np.maximum(1, np.floor(share).astype(np.int64))
    while take.sum() < count:
        take[np.argmax(np.where(take < sizes, share - take, -np.inf))] += 1
    while take.sum() > count:
        take[np.argmax(np.where(take > 1, take - share, -np.inf))] -= 1
    chosen = [
        stream("subset", seed, int(value)).permutation(np.flatnonzero(labels == value))[:number]
        for value, number in zip(values, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def check_fraction(fraction: float | None) -> None:
    """Raise UhkdError for a validation share outside (0,1); None is allowed."""
    if fraction is not None and not 0 < fraction < 1:
        raise UhkdError(f"val_fraction must be between 0 and 1 (both excluded), found {fraction}; 0.1 is usual")
