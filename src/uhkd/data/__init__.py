"""Images as uint8 sources, views that depend on (seed, view, index) alone, and loaders that resume exactly."""

from typing import TYPE_CHECKING

from uhkd.lazy import import_on_use

if TYPE_CHECKING:
    from uhkd.data.augment import Augmentation
    from uhkd.data.balanced import balanced_order, batch_images, check_balanced
    from uhkd.data.batch import Batch
    from uhkd.data.batch_transforms import augment_batch
    from uhkd.data.columns import Columns
    from uhkd.data.file_cache import OpenFiles
    from uhkd.data.layout import ImageFolder
    from uhkd.data.loader import (
        BatchPlan,
        IndexRange,
        Loader,
        ViewPlan,
        eval_loader,
        range_loader,
        train_loader,
        usable_cores,
    )
    from uhkd.data.memory_cache import is_in_memory
    from uhkd.data.open import DataSplits, open_data
    from uhkd.data.sampler import steps_per_epoch
    from uhkd.data.sources import ArraySource, DatasetSource, FileSource, ImageSource, Split
    from uhkd.data.splits import stratified_split, stratified_subset
    from uhkd.data.tar_headers import make_index, refuse_packed
    from uhkd.data.tar_index import INDEX
    from uhkd.data.tar_source import ShardOptions, ShardSource, tars

__all__ = [
    "INDEX",
    "ArraySource",
    "Augmentation",
    "Batch",
    "BatchPlan",
    "Columns",
    "DataSplits",
    "DatasetSource",
    "FileSource",
    "ImageFolder",
    "ImageSource",
    "IndexRange",
    "Loader",
    "OpenFiles",
    "ShardOptions",
    "ShardSource",
    "Split",
    "ViewPlan",
    "augment_batch",
    "balanced_order",
    "batch_images",
    "check_balanced",
    "eval_loader",
    "is_in_memory",
    "make_index",
    "open_data",
    "range_loader",
    "refuse_packed",
    "steps_per_epoch",
    "stratified_split",
    "stratified_subset",
    "tars",
    "train_loader",
    "usable_cores",
]

import_on_use(__name__)
