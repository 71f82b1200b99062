"""Loaders whose batches depend on the seed and the step alone, so that a run can resume at any step."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uhkd.data.augment import Augmentation
from uhkd.data.balanced import balanced_order, occurrences
from uhkd.data.batch import Batch
from uhkd.data.batch_transforms import augment_batch
from uhkd.data.memory_cache import fill
from uhkd.data.sampler import epoch_order, shuffle_of, steps_per_epoch
from uhkd.data.sources import ImageSource
from uhkd.data.worker_errors import start_error, worker_error
from uhkd.errors import UhkdError
from uhkd.recipe import Resize

RecordReader = Callable[[int, np.ndarray, Tensor, Tensor | None], np.ndarray]

_PREFETCH = 2  # batches ready per worker: more take memory, and do not help if workers are slower than the model


@dataclass(frozen=True)
class BatchPlan:
    """The steps of a training run, and this process's share of each batch.

    Epoch e visits the images in an order fixed by (seed, e) and drops the incomplete last batch. batch_size is over all
    processes; this one takes images rank, rank + world_size, ... of each batch. start_step: first step, when a run resumes.
    balanced: draw the images by class, see `balanced_order`; an image drawn again in an epoch gets another view.
    """

    seed: int
    batch_size: int
    epochs: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    balanced: bool = False


@dataclass(frozen=True)
class ViewPlan:
    """The view of each image that an epoch uses.

    Attributes:
        seed: of the views; None: the seed of the order.
        count: epoch e uses view e mod count; None: view e.
        record_reader: called as record_reader(view number, positions (B,) of this process's images, images (B,3,H,W) uint8,
            targets or None) in the process that makes the batch: with workers it must pickle, unless they are forked.
            Returns (B,n) uint8, the batch's `record`.
    """

    seed: int | None = None
    count: int | None = None
    record_reader: RecordReader | None = None


class IndexRange(NamedTuple):
    """Images start..stop-1 of one view."""

    view: int
    start: int
    stop: int


def train_loader(
    source: ImageSource,
    augmentation: Augmentation,
    plan: BatchPlan,
    *,
    num_classes: int,
    views: ViewPlan | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> "Loader":
    """Return the batches of a run from `plan.start_step` on, as one iterable.

    They do not depend on `workers`, and are bitwise identical to those of an uninterrupted run. num_classes: length of the
    targets. views: None: view e of `plan.seed` in epoch e. workers, device: see `Loader`.

    Raises:
        UhkdError: a batch size above the number of images or not divisible by world_size or the source's shuffle streams, a
            start_step beyond the end, or a label outside num_classes. While iterating: an image that cannot be read, with
            its name, a worker process that was killed, or an error of `record_reader`.
    """
    batch_size, views = plan.batch_size, views or ViewPlan()
    total = plan.epochs * steps_per_epoch(len(source), batch_size)
    if batch_size % plan.world_size:
        raise UhkdError(f"batch size {batch_size} must be a multiple of the number of processes, {plan.world_size}")
    if (shuffle := shuffle_of(source)) is not None and batch_size % shuffle.streams:
        raise UhkdError(
            f"batch size {batch_size} must be a multiple of the number of shuffle streams, {shuffle.streams}"
        )
    if not 0 <= plan.start_step <= total:
        raise UhkdError(f"start_step {plan.start_step} is outside the run of {total} steps")
    if views.count is not None and views.count < 1:
        raise UhkdError(f"views must be at least 1 (or None: a new view each epoch), found {views.count}")
    if source.labels is not None and int(source.labels.max()) >= num_classes:
        raise UhkdError(f"the data has labels up to {source.labels.max()}, but only {num_classes} classes were given")
    batches = _TrainBatches(source, augmentation, plan, views, num_classes)
    return Loader(batches, range(plan.start_step, total), workers, device)


def eval_loader(
    source: ImageSource,
    size: tuple[int, int],
    *,
    batch_size: int,
    workers: int = 0,
    augmentation: Augmentation | None = None,
    resize: Resize = "crop",
    device: torch.device | str | None = None,
) -> "Loader":
    """Return all images once, in order, without targets; the last batch may be smaller.

    Images get the `size` (H, W) by `resize`, see `fit_image`; with an augmentation, each is view 0 of seed 0 without mixing.

    Raises:
        UhkdError: batch_size below 1. While iterating: an image that cannot be read, with its name.
    """
    if batch_size < 1:
        raise UhkdError(f"batch size must be at least 1, found {batch_size}")
    augmentation = replace(augmentation or Augmentation(size, resize=resize), size=size, mixup=0.0, cutmix=0.0)
    ranges = [IndexRange(0, *pair) for pair in pairwise([*range(0, len(source), batch_size), len(source)])]
    return Loader(_RangeBatches(source, augmentation, 0, None), ranges, workers, device)


def range_loader(
    source: ImageSource,
    augmentation: Augmentation,
    ranges: Iterable[IndexRange],
    *,
    seed: int,
    num_classes: int,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> "Loader":
    """Return one batch for each range, in order; `ranges` is consumed only as far ahead as the workers load.

    Raises:
        UhkdError: while iterating: an image that cannot be read, with its name.
    """
    return Loader(_RangeBatches(source, augmentation, seed, num_classes), ranges, workers, device)


class Loader:
    """An iterable of `Batch`, loaded in this process (workers=0) or in `workers` others, with bitwise identical results.

    Nothing is drawn from the global random generators. At most as many workers as processor cores are started. device:
    where the batches are stored (None: the CPU); images travel to a GPU as bytes from pinned memory, while it computes. On a
    CPU with workers=0, reading and computing take turns: a thread for reading would take cores from the model.
    """

    def __init__(
        self, batches: "BatchDataset", steps: Iterable[Any], workers: int, device: torch.device | str | None = None
    ) -> None:
        if workers < 0:
            raise UhkdError(f"workers must be 0 or more, found {workers}")
        self.steps, self.source = steps, batches.source
        self.device = torch.device("cpu" if device is None else device)
        workers = min(workers, usable_cores())
        # No persistent workers: training has one iterator for the whole run, and workers of a validation would keep their
        # memory during training.
        self._inner: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            collate_fn=_identity,
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
        try:
            batches: Any = iter(self._inner)
        except Exception as error:
            raise start_error(error) or error from None
        try:
            for batch in batches:
                if isinstance(batch, UhkdError):
                    raise batch
                # between processes and to a GPU images are bytes: a quarter of the size of floats
                batch = batch.to(self.device)
                yield batch._replace(image=batch.image.float().div_(255))
        except RuntimeError as error:
            raise worker_error(error, getattr(batches, "_workers", ())) or error from None
        finally:
            # now, not by the garbage collector: it would wait 5 s for each process, because their queues are gone already
            getattr(batches, "_shutdown_workers", lambda: None)()


class BatchDataset(Dataset[Batch | UhkdError], ABC):
    """Batches of a source by step, with uint8 images; mistakes of the user are returned, to be raised by the main process."""

    source: ImageSource

    def __getitem__(self, step: Any) -> Batch | UhkdError:
        try:
            return self.make(step)
        except UhkdError as error:
            return UhkdError(str(error))

    @abstractmethod
    def make(self, step: Any) -> Batch:
        """Return the batch of one step."""

    def batch(self, image: Tensor, target: Tensor | None, index: np.ndarray, record: Tensor | None = None) -> Batch:
        labels = self.source.labels
        label = None if labels is None else torch.from_numpy(labels[index].astype(np.int64))
        return Batch(image, target, label, torch.from_numpy(index.copy()), record)


class _TrainBatches(BatchDataset):
    def __init__(
        self, source: ImageSource, augmentation: Augmentation, plan: BatchPlan, views: ViewPlan, num_classes: int
    ) -> None:
        self.source, self.augmentation, self.plan, self.views = source, augmentation, plan, views
        self.num_classes = num_classes
        self.per_epoch = steps_per_epoch(len(source), plan.batch_size)
        self._order: tuple[int, np.ndarray, np.ndarray | None] | None = None

    def make(self, step: int) -> Batch:
        plan, count = self.plan, self.views.count
        epoch, position = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = (balanced_order if plan.balanced else epoch_order)(self.source, seed=plan.seed, epoch=epoch)
            self._order = epoch, order, occurrences(order) if plan.balanced else None
        part = slice(position * plan.batch_size + plan.rank, (position + 1) * plan.batch_size, plan.world_size)
        _, order, numbers = self._order
        index = order[part]
        if numbers is None:
            return self._view(index, epoch if count is None else epoch % count)
        number = numbers[part]
        view = epoch + plan.epochs * number if count is None else (epoch + number) % count
        parts = [np.flatnonzero(view == each) for each in np.unique(view)]
        batches = [self._view(index[rows], int(view[rows[0]])) for rows in parts]  # one view each
        back = torch.from_numpy(np.argsort(np.concatenate(parts)))
        fields: Any = (None if x[0] is None else torch.cat(x)[back] for x in zip(*batches, strict=True))
        return Batch(*fields)

    def _view(self, index: np.ndarray, view: int) -> Batch:
        """Return one view of some images, with targets and records."""
        plan, views = self.plan, self.views
        image, target = augment_batch(
            self.source,
            index,
            seed=plan.seed if views.seed is None else views.seed,
            view=view,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
        )
        record = None
        if views.record_reader is not None:
            rows = views.record_reader(view, index, image, target)
            assert rows.dtype == np.uint8 and rows.ndim == 2 and len(rows) == len(index), rows.shape
            # a copy: a memory-mapped array may be read-only, which torch does not support
            record = torch.from_numpy(np.array(rows, order="C"))
        return self.batch(image, target, index, record)


class _RangeBatches(BatchDataset):
    def __init__(self, source: ImageSource, augmentation: Augmentation, seed: int, num_classes: int | None) -> None:
        self.source, self.augmentation, self.seed, self.num_classes = source, augmentation, seed, num_classes

    def make(self, step: IndexRange) -> Batch:
        index = np.arange(step.start, step.stop)
        image, target = augment_batch(
            self.source,
            index,
            seed=self.seed,
            view=step.view,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
        )
        return self.batch(image, target, index)


def _identity(raw: Any) -> Any:
    return raw


def usable_cores() -> int:
    """Return the number of processor cores this process may run on; a container or scheduler may allow fewer than exist."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
