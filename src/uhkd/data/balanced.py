"""Epochs in which every class is drawn equally often."""

import numpy as np
from jaxtyping import Int

from uhkd.data.rng import stream
from uhkd.data.sampler import epoch_order, shuffle_of, steps_per_epoch
from uhkd.data.sources import ImageSource
from uhkd.errors import UhkdError


def check_balanced(source: ImageSource) -> None:
    """Check that the images of a source can be drawn by class.

    Raises:
        UhkdError: without labels, or for shards that are read a few at a time.
    """
    if source.labels is None:
        raise UhkdError("sampling balanced draws images by class, and these have no labels; use --sampling uniform")
    if shuffle_of(source) is not None:
        raise UhkdError(
            "sampling balanced draws images from all shards in any order, and these shards are read a few at a time; leave out "
            "--shuffle-shards (remote shards: copy them to a disk), or use --class-weights balanced"
        )


def balanced_order(source: ImageSource, *, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Return as many images as there are, every class equally often and, within a class, every image (up to one draw).

    A function of (seed, epoch) alone. Small classes are repeated; of large ones each epoch has another part.
    """
    labels = source.labels
    assert labels is not None
    generator, present = stream("balanced", seed, epoch), np.unique(labels)
    shares = np.full(len(present), len(labels) // len(present))
    shares[generator.permutation(len(present))[: len(labels) % len(present)]] += 1
    drawn = []
    for label, share in zip(present, shares, strict=True):
        images = np.flatnonzero(labels == label)
        rounds = [generator.permutation(images) for _ in range(-(-int(share) // len(images)))]
        drawn.append(np.concatenate(rounds)[:share])
    return generator.permutation(np.concatenate(drawn))


def occurrences(order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return how often the image at each position was drawn before it, from 0."""
    by_image = np.argsort(order, kind="stable")
    grouped, numbers = order[by_image], np.empty_like(order)
    numbers[by_image] = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    return numbers


def batch_images(
    source: ImageSource, *, seed: int, batch_size: int, step: int, balanced: bool = False
) -> Int[np.ndarray, " b"]:
    """Return the indices of the images in step `step` of a training run: (batch_size,), over all its processes.

    balanced: see `BatchPlan`.
    """
    epoch, position = divmod(step, steps_per_epoch(len(source), batch_size))
    order = (balanced_order if balanced else epoch_order)(source, seed=seed, epoch=epoch)
    return order[position * batch_size :][:batch_size]
