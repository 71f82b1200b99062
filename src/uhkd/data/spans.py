"""Views in the order of their images, stretch by stretch: how a teacher is shown what is to be stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from uhkd.data.augment import Augmentation
from uhkd.data.loader import Failure, Loader, Raw, raw_views
from uhkd.data.sources import Source


class Span(NamedTuple):
    """Images `start` up to `stop` (by index) of one view."""

    view: int
    start: int
    stop: int


def span_loader(
    source: Source,
    augmentation: Augmentation,
    spans: Iterable[Span],
    *,
    seed: int,
    num_classes: int,
    workers: int = 0,
    device: str = "cpu",
) -> Loader:
    """A batch for every span, in their order; `spans` is read little more than what the workers need ahead.

    Raises:
        ValueError: while iterating: an image that cannot be read, named.
    """
    return Loader(_SpanBatches(source, augmentation, seed, num_classes), spans, workers, device)


class _SpanBatches(Dataset[Raw | Failure]):
    def __init__(self, source: Source, augmentation: Augmentation, seed: int, num_classes: int) -> None:
        self.source, self.augmentation, self.seed, self.num_classes = source, augmentation, seed, num_classes

    def __getitem__(self, span: Span) -> Raw | Failure:
        index = np.arange(span.start, span.stop)
        return raw_views(
            self.source,
            index,
            seed=self.seed,
            view=span.view,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
        )
