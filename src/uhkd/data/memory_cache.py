"""Small images of files and data sets: decoded once, then kept in memory as bytes, up to a bound."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from uhkd.data.datasets import RawSplits
from uhkd.data.sources import ArraySource, DatasetSource, FileSource, ImageSource, InMemoryImages, Split, fingerprint
from uhkd.data.tar_source import ShardSource

BUDGET = 2**30  # bytes: 350,000 images of 32x32, 87,000 of 64x64
_SMALL = 64  # pixels: larger images are mostly cropped anew from their files, by processes that share no memory
_CHECKS = 32  # images read twice: a transform that acts on one image in ten escapes twice in a thousand times
_WORTH_A_LINE = 10**6  # bytes


class CachedSource:
    """The images of another source, all of one size; each is decoded when it is first asked for, and then kept.

    An image of another size ends the keeping of further ones: from there on they are read from the source. So does a
    user's data set that gives another image when read again, noticed while its first images are read: nothing is kept of it.
    """

    def __init__(self, source: ImageSource, size: tuple[int, int]) -> None:
        self.source, self.labels = source, source.labels
        self.keys, self.shuffle = getattr(source, "keys", None), getattr(source, "shuffle", None)
        # not touched before it is written: the system gives memory page by page
        self._images = torch.from_numpy(np.empty((len(source), 3, *size), dtype=np.uint8))
        self._there = np.zeros(len(source), dtype=bool)
        self._keeping = True
        self._checks = _CHECKS if isinstance(source, DatasetSource) else 0

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        if self._there[index]:
            return self._images[index].clone()
        return self._read(index) if self._keeping else self.source.image(index)

    def in_memory(self, indices: np.ndarray) -> InMemoryImages | None:
        """Return all images kept, those of `indices` among them; None once one had another size."""
        for index in indices[~self._there[indices]].tolist():
            if self._keeping:
                self._read(index)
        return InMemoryImages(self._images, indices) if self._there[indices].all() else None

    def fill(self, indices: np.ndarray) -> None:
        """Decode those of the images `indices` that are missing; what cannot be read is left for whoever asks for it."""
        for index in indices[~self._there[indices]].tolist():
            try:
                self.image(index)
            except ValueError:
                continue

    def fingerprint(self) -> str:
        """Return that of the source."""
        return fingerprint(self.source)

    def _read(self, index: int) -> Tensor:
        # a source of files would keep the image a second time
        image = self.source.decode(index) if isinstance(self.source, FileSource) else self.source.image(index)
        if self._checks:
            self._checks -= 1
            if not torch.equal(image, self.source.image(index)):
                # frozen, a random transform would act once instead of every time
                self._there[:] = self._keeping = False
                return image
        if image.shape == self._images.shape[1:]:
            self._images[index] = image
            self._there[index] = True
        else:
            self._keeping = False
        return image


def keep(parts: RawSplits) -> RawSplits:
    """Return `parts` with small images of one size, where they are read anew each time, in `CachedSource`; a note tells of it.

    Training images come first, then those of val and test, each if all of them fit into what is left of `BUDGET`.
    """
    size = parts.native_size
    if size is None or max(size) > _SMALL:
        return parts
    per_image, room, count, notes = 3 * size[0] * size[1], BUDGET, 0, list(parts.notes)
    cached: dict[str, ImageSource] = {}
    for name, source in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
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
                f"{room / 1e6:,.0f} MB set aside for that: they are decoded anew each epoch"
            )
    if count * per_image >= _WORTH_A_LINE:
        notes.append(f"{_images(count, size)} kept in memory ({count * per_image / 1e6:,.0f} MB), each decoded once")
    return replace(parts, **cached, notes=tuple(notes))


def _reads_every_time(source: ImageSource | None) -> TypeGuard[ImageSource]:
    """Whether images are read from where they lie each time, and are then the same; those from afar are not fetched for this."""
    if isinstance(source, ShardSource):
        return source.store.address is None
    return isinstance(source, FileSource) or (isinstance(source, DatasetSource) and source.steady)


def in_memory(source: ImageSource) -> bool:
    """Whether images come from memory, at the latest when asked for again."""
    if isinstance(source, Split):
        return in_memory(source.source)
    return isinstance(source, ArraySource | CachedSource)


def fill(source: ImageSource) -> None:
    """Decode what the source is to keep: before processes are started, which would each decode it for themselves."""
    indices = np.arange(len(source))
    while isinstance(source, Split):
        source, indices = source.source, source.indices[indices]
    if isinstance(source, CachedSource):
        source.fill(indices)


def _images(count: int, size: tuple[int, int]) -> str:
    return f"{count:,} images of {size[0]}x{size[1]}"
