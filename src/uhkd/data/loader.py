"""Batches in an order that is counted, not remembered: step s of a run is the same whoever loads it, and when."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uhkd.data.augment import Augmentation
from uhkd.data.batch import Batch
from uhkd.data.batch_transforms import augment_batch as views_of
from uhkd.data.batch_transforms import augment_unmixed
from uhkd.data.memory_cache import fill
from uhkd.data.sampler import epoch_order, shuffle_of
from uhkd.data.sources import ImageSource
from uhkd.errors import UhkdError

RecordReader = Callable[[int, np.ndarray, Tensor, Tensor | None], np.ndarray]

_PREFETCH = (
    2  # batches ready for each worker: a longer queue fills memory, and helps none that is slower than the model
)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of whole batches in n images.

    Raises:
        UhkdError: batch_size below 1 or above n.
    """
    if batch_size < 1:
        raise UhkdError(f"batch size must be at least 1, found {batch_size}")
    if batch_size > n:
        raise UhkdError(f"batch size {batch_size} is larger than the training part ({n} images): use at most {n}")
    return n // batch_size


def batch_images(source: ImageSource, *, seed: int, batch_size: int, step: int) -> np.ndarray:
    """Return which images step `step` of a training visits: (batch_size,), over all its processes."""
    epoch, position = divmod(step, steps_per_epoch(len(source), batch_size))
    return epoch_order(source, seed=seed, epoch=epoch)[position * batch_size :][:batch_size]


def train_loader(
    source: ImageSource,
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
    record_reader: RecordReader | None = None,
    device: torch.device | str | None = None,
) -> Loader:
    """Return every batch of a run from `start_step` on, as one iterable.

    Epoch e visits the images in an order fixed by (seed, e), dropping the incomplete last batch, and shows view e, or
    e mod `views`, of `view_seed` (None: `seed`). batch_size is the global one; each process gets every world_size-th of
    its images. Batches do not depend on `workers`, and those from `start_step` on equal those of an uninterrupted run.

    beside: called as beside(view number, positions (B,) of this process's images, images (B,3,H,W) uint8, targets or None)
    wherever the batch is made (so with workers it travels to them: without `fork` it must pickle); the bytes it returns,
    (B,n) uint8, become the batch's `record`. device: see `Loader`.

    Raises:
        UhkdError: a batch size above the number of images or not divisible by world_size or the source's shuffle streams, a
            start_step beyond the end, or a label outside num_classes. While iterating: an image that cannot be read, named,
            a worker that was killed, or what `record_reader` raises.
    """
    total = epochs * steps_per_epoch(len(source), batch_size)
    if batch_size % world_size:
        raise UhkdError(f"batch size {batch_size} must be a multiple of the number of processes, {world_size}")
    if (shuffle := shuffle_of(source)) is not None and batch_size % shuffle.streams:
        raise UhkdError(
            f"batch size {batch_size} must be a multiple of the number of shuffle streams, {shuffle.streams}"
        )
    if not 0 <= start_step <= total:
        raise UhkdError(f"start_step {start_step} lies outside the run of {total} steps")
    if views is not None and views < 1:
        raise UhkdError(f"views must be at least 1 (or None: a new view each epoch), found {views}")
    if source.labels is not None and int(source.labels.max()) >= num_classes:
        raise UhkdError(f"the data has labels up to {source.labels.max()}, but only {num_classes} classes were given")
    view_seed = seed if view_seed is None else view_seed
    batches = _TrainBatches(
        source, augmentation, seed, batch_size, num_classes, rank, world_size, views, view_seed, record_reader
    )
    return Loader(batches, range(start_step, total), workers, device)


def eval_loader(
    source: ImageSource,
    size: tuple[int, int],
    *,
    batch_size: int,
    workers: int = 0,
    augmentation: Augmentation | None = None,
    device: torch.device | str | None = None,
) -> Loader:
    """Return all images once, in order, cut to `size`'s aspect ratio and resized; the last batch may be smaller.

    With an augmentation, view 0 of seed 0 is shown instead, un-mixed (images as training sees them). No targets.
    device: see `Loader`.

    Raises:
        UhkdError: batch_size below 1. While iterating: an image that cannot be read, named.
    """
    if batch_size < 1:
        raise UhkdError(f"batch size must be at least 1, found {batch_size}")
    if augmentation is not None:
        augmentation = replace(augmentation, size=size, mixup=0.0, cutmix=0.0)
    batches = _EvalBatches(source, size, batch_size, augmentation)
    return Loader(batches, range(-(-len(source) // batch_size)), workers, device)


class Loader:
    """An iterable of `Batch`, made in this process (workers=0) or in `workers` others, with equal results.

    Draws nothing from the global random generators. No more workers than processor cores are started. device: where the
    batches shall lie (None: on the CPU); to a GPU images travel as bytes from pinned memory, beside the work that is
    queued there. On a CPU workers=0 reads in turn with the model: a thread beside it would only take its cores.
    """

    def __init__(
        self, batches: BatchDataset, steps: Iterable[Any], workers: int, device: torch.device | str | None = None
    ) -> None:
        if workers < 0:
            raise UhkdError(f"workers must be 0 or more, found {workers}")
        self.steps, self.source = steps, batches.source
        self.device = torch.device("cpu" if device is None else device)
        workers = min(workers, usable_cores())
        # Workers end with their iterator: that of training lasts for the whole run, and kept ones of a validation would
        # hold their memory while training.
        self._inner: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=_PREFETCH if workers else None,
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        assert isinstance(self.steps, Sized)
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        if self._inner.num_workers:
            fill(self.source)
        for raw in self._made():
            if isinstance(raw, LoadError):
                raise UhkdError(raw.message)
            # bytes travel, between processes and to a GPU: a quarter of the memory that floats would need
            batch = Batch(*raw).to(self.device)
            yield batch._replace(image=batch.image.float().div_(255))

    def _made(self) -> Iterator[RawBatch | LoadError]:
        try:
            yield from self._inner
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            yield LoadError(
                f"a process that loads images was ended from outside ({error}); often memory is short: use fewer --workers "
                "or a smaller batch, or --workers 0 to load in the training's own process"
            )


class RawBatch(NamedTuple):
    image: Tensor  # uint8
    target: Tensor | None
    label: Tensor | None
    index: Tensor
    record: Tensor | None


class LoadError(NamedTuple):
    """A user's mistake found while loading; raised by the consumer, so that no worker's trace surrounds it."""

    message: str


class BatchDataset(Dataset[RawBatch | LoadError], ABC):
    """Batches of a source by their number; what a user can mend is returned as a `LoadError`."""

    source: ImageSource

    def __getitem__(self, step: Any) -> RawBatch | LoadError:
        try:
            return self.make(step)
        except ValueError as error:
            return LoadError(str(error))

    @abstractmethod
    def make(self, step: Any) -> RawBatch:
        """The batch of one step."""

    def raw(self, image: Tensor, target: Tensor | None, index: np.ndarray, record: Tensor | None = None) -> RawBatch:
        labels = self.source.labels
        label = None if labels is None else torch.from_numpy(labels[index].astype(np.int64))
        return RawBatch(image, target, label, torch.from_numpy(index.copy()), record)


class _TrainBatches(BatchDataset):
    def __init__(
        self,
        source: ImageSource,
        augmentation: Augmentation,
        seed: int,
        batch_size: int,
        num_classes: int,
        rank: int,
        world_size: int,
        views: int | None,
        view_seed: int,
        record_reader: RecordReader | None,
    ) -> None:
        self.source, self.augmentation, self.seed, self.num_classes = source, augmentation, seed, num_classes
        self.batch_size, self.rank, self.world_size, self.views = batch_size, rank, world_size, views
        self.view_seed, self.record_reader = view_seed, record_reader
        self.per_epoch = steps_per_epoch(len(source), batch_size)
        self._order: tuple[int, np.ndarray] | None = None

    def make(self, step: int) -> RawBatch:
        epoch, position = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.source, seed=self.seed, epoch=epoch)
        start = position * self.batch_size
        index = self._order[1][start : start + self.batch_size][self.rank :: self.world_size]
        number = epoch if self.views is None else epoch % self.views
        image, target = views_of(
            self.source,
            index,
            seed=self.view_seed,
            view=number,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
        )
        record = None
        if self.record_reader is not None:
            stored = self.record_reader(number, index, image, target)
            assert stored.dtype == np.uint8 and stored.ndim == 2 and len(stored) == len(index), stored.shape
            # copied: what is mapped from a file may not be writable, which torch wants
            record = torch.from_numpy(np.array(stored, order="C"))
        return self.raw(image, target, index, record)


class _EvalBatches(BatchDataset):
    def __init__(
        self, source: ImageSource, size: tuple[int, int], batch_size: int, augmentation: Augmentation | None
    ) -> None:
        self.source, self.size, self.batch_size, self.augmentation = source, size, batch_size, augmentation

    def make(self, step: int) -> RawBatch:
        start = step * self.batch_size
        index = np.arange(start, min(start + self.batch_size, len(self.source)))
        augmentation = Augmentation(self.size) if self.augmentation is None else self.augmentation
        images = augment_unmixed(self.source, index, seed=0, view=0, augmentation=augmentation)
        return self.raw(torch.from_numpy(images), None, index)


def _unchanged(raw: Any) -> Any:
    return raw


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine's where a container or a scheduler gave it some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
