"""The order of the images in an epoch: a function of (seed, epoch) alone, also for images in shards."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from uhkd.data.rng import stream
from uhkd.data.sources import ImageSource
from uhkd.errors import UhkdError


@dataclass(frozen=True)
class ShardShuffle:
    """A shuffle of images in shards that reads few shards at a time.

    Attributes:
        bounds: (S+1,) rising positions; shard s contains images bounds[s]..bounds[s+1]-1.
        at_a_time: number of shards whose images are shuffled together.
        streams: equal parts of an epoch that are read in parallel, image p of each batch from stream p mod streams. If this is
            the number of processes, or a multiple of it, each process reads different shards, and the order does not depend
            on the number of processes.
    """

    bounds: Int[np.ndarray, " s"]
    at_a_time: int
    streams: int = 1

    def subset(self, indices: np.ndarray) -> "ShardShuffle":
        """Return the shuffle of the images at the rising positions `indices`."""
        return ShardShuffle(np.searchsorted(indices, self.bounds), self.at_a_time, self.streams)

    def range_of(self, index: int) -> tuple[int, int]:
        """Return (first, last + 1) of the images in the shard of image `index`."""
        shard = int(np.searchsorted(self.bounds, index, side="right")) - 1
        return int(self.bounds[shard]), int(self.bounds[shard + 1])

    def order(self, generator: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return a permutation: shuffled shards, divided equally among the streams, each shuffled in blocks of shards.

        The remaining images, fewer than there are streams, come last.
        """
        shards = generator.permutation(len(self.bounds) - 1)
        sizes = np.diff(self.bounds)[shards]
        images = int(self.bounds[-1])
        # position of the k-th image when the shards are in their new order
        positions = np.arange(images) + np.repeat(self.bounds[:-1][shards] - (np.cumsum(sizes) - sizes), sizes)
        per_stream = images // self.streams
        full = per_stream * self.streams
        rank = np.repeat(np.arange(len(shards)), sizes)[:full].reshape(self.streams, per_stream)
        block = (rank - rank[:, :1]) // self.at_a_time
        chance = generator.random((self.streams, per_stream))
        shuffled = np.take_along_axis(
            positions[:full].reshape(self.streams, per_stream), np.lexsort((chance, block), axis=1), 1
        )
        return np.concatenate([shuffled.T.ravel(), positions[full:]])


def shuffle_of(source: ImageSource) -> ShardShuffle | None:
    """Return the attribute `shuffle` of a source; None, or without one: all images are shuffled together."""
    return getattr(source, "shuffle", None)


def epoch_order(source: ImageSource, *, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Return the order in which epoch `epoch` visits the images: a permutation."""
    generator, shuffle = stream("order", seed, epoch), shuffle_of(source)
    return generator.permutation(len(source)) if shuffle is None else shuffle.order(generator)


def mix_candidates(source: ImageSource, index: int) -> tuple[int, int]:
    """Return (first, last + 1) of the images that may be mixed into image `index`: all, or those of its shard."""
    shuffle = shuffle_of(source)
    return (0, len(source)) if shuffle is None else shuffle.range_of(index)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of complete batches in n images.

    Raises:
        UhkdError: batch_size below 1 or above n.
    """
    if batch_size < 1:
        raise UhkdError(f"batch size must be at least 1, found {batch_size}")
    if batch_size > n:
        raise UhkdError(f"batch size {batch_size} is larger than the training split ({n} images): use at most {n}")
    return n // batch_size
