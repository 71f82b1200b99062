"""Views by ranges of images in index order, from which teacher outputs are cached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from uhkd.data.augment import Augmentation
from uhkd.data.batch import Batch
from uhkd.data.batch_transforms import augment_batch
from uhkd.data.loader import BatchDataset, Loader
from uhkd.data.sources import ImageSource


class IndexRange(NamedTuple):
    """Images start..stop-1 of one view."""

    view: int
    start: int
    stop: int


def span_loader(
    source: ImageSource,
    augmentation: Augmentation,
    spans: Iterable[IndexRange],
    *,
    seed: int,
    num_classes: int,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Loader:
    """Return one batch for each range, in order; `spans` is consumed only as far ahead as the workers load.

    Raises:
        UhkdError: while iterating: an image that cannot be read, with its name.
    """
    return Loader(_SpanBatches(source, augmentation, seed, num_classes), spans, workers, device)


class _SpanBatches(BatchDataset):
    def __init__(self, source: ImageSource, augmentation: Augmentation, seed: int, num_classes: int) -> None:
        self.source, self.augmentation, self.seed, self.num_classes = source, augmentation, seed, num_classes

    def make(self, span: IndexRange) -> Batch:
        index = np.arange(span.start, span.stop)
        image, target = augment_batch(
            self.source,
            index,
            seed=self.seed,
            view=span.view,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
        )
        return self.batch(image, target, index)
