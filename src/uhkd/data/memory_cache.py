"""Small images of files and data sets: decoded once, then cached in memory as bytes, up to a limit."""

from dataclasses import replace
from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from uhkd.data.datasets import RawSplits
from uhkd.data.sources import ArraySource, DatasetSource, FileSource, ImageSource, InMemoryImages, Split, fingerprint
from uhkd.data.tar_source import ShardSource
from uhkd.errors import UhkdError

BUDGET = 2**30  # bytes: 350,000 images of 32x32, 87,000 of 64x64
_SMALL = 64  # pixels: larger images are usually cropped from their files by worker processes, which share no memory
_CHECKS = 32  # images read twice: a transform that acts with probability 0.1 is missed in 0.2 % of cases
_LOGGED = 10**6  # bytes; a smaller cache is not reported


class CachedSource:
    """The images of another source, all of one size; each is cached when it is first read.

    After an image of another size, further images are not cached but read from the source. If one of the first images of a
    user's data set differs when it is read again, nothing is cached.
    """

    def __init__(self, source: ImageSource, size: tuple[int, int]) -> None:
        self.source, self.labels = source, source.labels
        self.keys, self.shuffle = getattr(source, "keys", None), getattr(source, "shuffle", None)
        # np.empty does not touch the memory: the system provides it page by page
        self._images = torch.from_numpy(np.empty((len(source), 3, *size), dtype=np.uint8))
        self._cached = np.zeros(len(source), dtype=bool)
        self._active = True
        self._checks = _CHECKS if isinstance(source, DatasetSource) else 0

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        if self._cached[index]:
            return self._images[index].clone()
        return self._read(index) if self._active else self.source.image(index)

    def in_memory(self, indices: np.ndarray) -> InMemoryImages | None:
        """Return the cache, with the images `indices` in it; None if one of them could not be cached."""
        for index in indices[~self._cached[indices]].tolist():
            if self._active:
                self._read(index)
        return InMemoryImages(self._images, indices) if self._cached[indices].all() else None

    def fill(self, indices: np.ndarray) -> None:
        """Decode the images `indices` that are not cached yet; those that cannot be read raise when they are used."""
        for index in indices[~self._cached[indices]].tolist():
            try:
                self.image(index)
            except UhkdError:
                continue

    def fingerprint(self) -> str:
        """Return the fingerprint of the source."""
        return fingerprint(self.source)

    def _read(self, index: int) -> Tensor:
        # `FileSource.image` would cache the image a second time
        image = self.source.decode(index) if isinstance(self.source, FileSource) else self.source.image(index)
        if self._checks:
            self._checks -= 1
            if not torch.equal(image, self.source.image(index)):
                # cached, a random transform would act once instead of every time
                self._cached[:] = self._active = False
                return image
        if image.shape == self._images.shape[1:]:
            self._images[index] = image
            self._cached[index] = True
        else:
            self._active = False
        return image


def cache_in_memory(splits: RawSplits) -> RawSplits:
    """Return `splits`, their small images of one size that would be read each time wrapped in `CachedSource`, with a note.

    Training images come first, then those of val and test, each if all of them fit into the rest of `BUDGET`.
    """
    size = splits.native_size
    if size is None or max(size) > _SMALL:
        return splits
    per_image, room, count, notes = 3 * size[0] * size[1], BUDGET, 0, list(splits.notes)
    cached: dict[str, ImageSource] = {}
    for name, source in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if not _reads_every_time(source):
            continue
        needed = len(source) * per_image
        if needed <= room:
            room -= needed
            count += len(source)
            cached[name] = CachedSource(source, size)
        else:
            notes.append(
                f"{_images(len(source), size)} would take {needed / 1e6:,.0f} MB of memory, more than the "
                f"{room / 1e6:,.0f} MB left for the cache: they are decoded again in each epoch"
            )
    if count * per_image >= _LOGGED:
        notes.append(f"{_images(count, size)} kept in memory ({count * per_image / 1e6:,.0f} MB), each decoded once")
    return replace(splits, **cached, notes=tuple(notes))


def _reads_every_time(source: ImageSource | None) -> TypeGuard[ImageSource]:
    """Return whether a local source reads an image each time it is used, and always gets the same."""
    if isinstance(source, ShardSource):
        return source.store.address is None
    return isinstance(source, FileSource) or (isinstance(source, DatasetSource) and source.steady)


def is_in_memory(source: ImageSource) -> bool:
    """Return whether images are read from memory, at the latest the second time."""
    if isinstance(source, Split):
        return is_in_memory(source.source)
    return isinstance(source, ArraySource | CachedSource)


def fill(source: ImageSource) -> None:
    """Fill the source's cache before worker processes start, because each of them would decode the images."""
    indices = np.arange(len(source))
    while isinstance(source, Split):
        source, indices = source.source, source.indices[indices]
    if isinstance(source, CachedSource):
        source.fill(indices)


def _images(count: int, size: tuple[int, int]) -> str:
    return f"{count:,} images of {size[0]}x{size[1]}"
