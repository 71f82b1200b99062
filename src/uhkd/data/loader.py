"""Batches in an order that is counted, not remembered: step s of a run is the same whoever loads it, and when."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uhkd.data.augment import Augmentation, fit, plain_view
from uhkd.data.augment import view as one_view
from uhkd.data.batch import Batch
from uhkd.data.randomness import stream
from uhkd.data.sources import Source


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of whole batches in n images.

    Raises:
        ValueError: batch_size below 1 or above n.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, found {batch_size}")
    if batch_size > n:
        raise ValueError(f"batch size {batch_size} is larger than the training part ({n} images): use at most {n}")
    return n // batch_size


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which epoch `epoch` visits n images: (n,) a permutation."""
    return stream("order", seed, epoch).permutation(n)


def train_loader(
    source: Source,
    augmentation: Augmentation,
    *,
    seed: int,
    batch_size: int,
    epochs: int,
    num_classes: int,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    views: int | None = None,
    view_seed: int | None = None,
    beside: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Loader:
    """Return every batch of a run from `start_step` on, as one iterable.

    Epoch e visits the images in an order fixed by (seed, e), dropping the incomplete last batch, and shows view e, or
    e mod `views`. batch_size is the global one; each process gets every world_size-th of its images. Batches do not
    depend on `workers`, and those from `start_step` on equal those of an uninterrupted run. view_seed is the seed of the
    views where it is not the run's own. beside(view, indices) gives the bytes (B,n) that travel as the batch's `record`.

    Raises:
        ValueError: a batch size above the number of images or not divisible by world_size, a start_step beyond the end,
            or a label outside num_classes. While iterating: an image that cannot be read, named.
    """
    total = epochs * steps_per_epoch(len(source), batch_size)
    if batch_size % world_size:
        raise ValueError(f"batch size {batch_size} must be a multiple of the number of processes, {world_size}")
    if not 0 <= start_step <= total:
        raise ValueError(f"start_step {start_step} lies outside the run of {total} steps")
    if views is not None and views < 1:
        raise ValueError(f"views must be at least 1 (or None: a new view each epoch), found {views}")
    if source.labels is not None and int(source.labels.max()) >= num_classes:
        raise ValueError(f"the data has labels up to {source.labels.max()}, but only {num_classes} classes were given")
    batches = _TrainBatches(
        source,
        augmentation,
        seed,
        batch_size,
        num_classes,
        rank,
        world_size,
        views,
        seed if view_seed is None else view_seed,
        beside,
    )
    return Loader(batches, range(start_step, total), workers)


def eval_loader(
    source: Source,
    size: tuple[int, int],
    *,
    batch_size: int,
    workers: int = 0,
    augmentation: Augmentation | None = None,
) -> Loader:
    """Return all images once, in order, cut to `size`'s aspect ratio and resized; the last batch may be smaller.

    With an augmentation, view 0 of seed 0 is shown instead, un-mixed (images as training sees them). No targets.

    Raises:
        ValueError: batch_size below 1. While iterating: an image that cannot be read, named.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, found {batch_size}")
    if augmentation is not None:
        augmentation = replace(augmentation, size=size, mixup=0.0, cutmix=0.0)
    return Loader(_EvalBatches(source, size, batch_size, augmentation), range(-(-len(source) // batch_size)), workers)


class Loader:
    """An iterable of `Batch`, made in this process (workers=0) or in `workers` others, with equal results.

    Draws nothing from the global random generators. No more workers than processor cores are started.
    """

    def __init__(
        self, batches: Dataset[Raw | Failure], steps: Iterable[Any], workers: int, device: str = "cpu"
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, found {workers}")
        self.steps = steps
        self._inner: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=min(workers, _cores()),
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        assert isinstance(self.steps, Sequence)
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        for raw in self._inner:
            if isinstance(raw, Failure):
                raise ValueError(raw.message)
            # bytes travel between processes; a quarter of the shared memory that floats would need
            yield Batch(raw.image.float().div_(255), raw.target, raw.label, raw.index, raw.record)


class Raw(NamedTuple):
    image: Tensor  # uint8
    target: Tensor | None
    label: Tensor | None
    index: Tensor
    record: Tensor | None = None


class Failure(NamedTuple):
    """A user's mistake found while loading; raised by the consumer, so that no worker's trace surrounds it."""

    message: str


class _TrainBatches(Dataset[Raw | Failure]):
    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        seed: int,
        batch_size: int,
        num_classes: int,
        rank: int,
        world_size: int,
        views: int | None,
        view_seed: int,
        beside: Callable[[int, np.ndarray], np.ndarray] | None,
    ) -> None:
        self.source, self.augmentation, self.seed, self.num_classes = source, augmentation, seed, num_classes
        self.batch_size, self.rank, self.world_size, self.views = batch_size, rank, world_size, views
        self.view_seed, self.beside = view_seed, beside
        self.per_epoch = steps_per_epoch(len(source), batch_size)
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> Raw | Failure:
        epoch, position = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self.source), seed=self.seed, epoch=epoch)
        start = position * self.batch_size
        index = self._order[1][start : start + self.batch_size][self.rank :: self.world_size]
        number = epoch if self.views is None else epoch % self.views
        raw = raw_views(
            self.source,
            index,
            seed=self.view_seed,
            view=number,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
        )
        if self.beside is None or isinstance(raw, Failure):
            return raw
        try:
            return raw._replace(record=torch.from_numpy(self.beside(number, index)))
        except ValueError as error:
            return Failure(str(error))


def raw_views(
    source: Source, index: np.ndarray, *, seed: int, view: int, augmentation: Augmentation, num_classes: int
) -> Raw | Failure:
    """Views of some images as a batch of bytes, or why an image cannot be read."""
    try:
        pairs = [
            one_view(source, int(i), seed=seed, view=view, augmentation=augmentation, num_classes=num_classes)
            for i in index
        ]
    except ValueError as error:
        return Failure(str(error))
    targets = [target for _, target in pairs if target is not None]
    return _assemble([image for image, _ in pairs], torch.stack(targets) if targets else None, source, index)


class _EvalBatches(Dataset[Raw | Failure]):
    def __init__(
        self, source: Source, size: tuple[int, int], batch_size: int, augmentation: Augmentation | None
    ) -> None:
        self.source, self.size, self.batch_size, self.augmentation = source, size, batch_size, augmentation

    def __getitem__(self, step: int) -> Raw | Failure:
        start = step * self.batch_size
        index = np.arange(start, min(start + self.batch_size, len(self.source)))
        try:
            images = [self._image(int(i)) for i in index]
        except ValueError as error:
            return Failure(str(error))
        return _assemble(images, None, self.source, index)

    def _image(self, index: int) -> Tensor:
        if self.augmentation is None:
            return fit(self.source.image(index), self.size)
        return torch.from_numpy(plain_view(self.source, index, seed=0, view=0, augmentation=self.augmentation))


def _assemble(images: list[Tensor], target: Tensor | None, source: Source, index: np.ndarray) -> Raw:
    label = None if source.labels is None else torch.from_numpy(source.labels[index].astype(np.int64))
    return Raw(torch.stack(images), target, label, torch.from_numpy(np.array(index, dtype=np.int64)))


def _unchanged(raw: Any) -> Any:
    return raw


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
