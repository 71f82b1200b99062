"""In which order an epoch visits images: a pure function of (seed, epoch), also where images lie in shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from uhkd.data.rng import stream
from uhkd.data.sources import ImageSource


@dataclass(frozen=True)
class ShardShuffle:
    """How images that lie in shards are shuffled so that few shards are read at a time.

    bounds: (S+1,) rising positions; shard s holds images bounds[s] up to bounds[s+1]. at_a_time: shards whose images are
    shuffled together. streams: stretches of an epoch that are read side by side, image p of each batch from
    stream p mod streams: with     as many streams as processes (or a
    multiple of them) each process reads its own shards, and the order does not depend on the number of processes.
    """

    bounds: Int[np.ndarray, " s"]
    at_a_time: int
    streams: int = 1

    def part(self, indices: np.ndarray) -> ShardShuffle:
        """The same of some images, by rising positions."""
        return ShardShuffle(np.searchsorted(indices, self.bounds), self.at_a_time, self.streams)

    def range_of(self, index: int) -> tuple[int, int]:
        """First and last + 1 of the images in the shard of image `index`."""
        shard = int(np.searchsorted(self.bounds, index, side="right")) - 1
        return int(self.bounds[shard]), int(self.bounds[shard + 1])

    def order(self, generator: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return a permutation: shuffled shards, cut into equal parts for the streams, each shuffled by blocks of shards.

        What the streams leave over, fewer images than there are streams, comes last.
        """
        shards = generator.permutation(len(self.bounds) - 1)
        sizes = np.diff(self.bounds)[shards]
        images = int(self.bounds[-1])
        # position of the k-th image when shards stand in their new order
        positions = np.arange(images) + np.repeat(self.bounds[:-1][shards] - (np.cumsum(sizes) - sizes), sizes)
        places = np.repeat(np.arange(len(shards)), sizes)
        each = images // self.streams
        full = each * self.streams
        place = places[:full].reshape(self.streams, each)
        block = (place - place[:, :1]) // self.at_a_time
        chance = generator.random((self.streams, each))
        shuffled = np.take_along_axis(
            positions[:full].reshape(self.streams, each), np.lexsort((chance, block), axis=1), 1
        )
        return np.concatenate([shuffled.T.ravel(), positions[full:]])


def shuffle_of(source: ImageSource) -> ShardShuffle | None:
    """How a source wants to be shuffled, by its own `shuffle`; None: all of it at once."""
    return getattr(source, "shuffle", None)


def epoch_order(source: ImageSource, *, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Return the order in which epoch `epoch` visits the images: a permutation."""
    generator, own = stream("order", seed, epoch), shuffle_of(source)
    return generator.permutation(len(source)) if own is None else own.order(generator)


def mix_candidates(source: ImageSource, index: int) -> tuple[int, int]:
    """First and last + 1 of the images that may be mixed into image `index`: all, or those of its shard."""
    own = shuffle_of(source)
    return (0, len(source)) if own is None else own.range_of(index)
