"""Images as uint8 sources, views that are pure functions of (seed, view, index), and loaders that resume exactly."""

from typing import TYPE_CHECKING

from uhkd.lazy import import_on_use

if TYPE_CHECKING:
    from uhkd.data.augment import Augmentation, view
    from uhkd.data.batch import Batch
    from uhkd.data.batched import views
    from uhkd.data.descriptors import Descriptors
    from uhkd.data.index import INDEX
    from uhkd.data.loader import Loader, batch_images, eval_loader, steps_per_epoch, train_loader, usable_cores
    from uhkd.data.memory import in_memory
    from uhkd.data.opening import Data, open_data
    from uhkd.data.sharded import Sharding, ShardSource, tars
    from uhkd.data.sources import ArraySource, DatasetSource, FileSource, Part, Source
    from uhkd.data.spans import Span, span_loader
    from uhkd.data.splits import stratified_split, stratified_subset
    from uhkd.data.tars import make_index, refuse_packed

__all__ = [
    "INDEX",
    "ArraySource",
    "Augmentation",
    "Batch",
    "Data",
    "DatasetSource",
    "Descriptors",
    "FileSource",
    "Loader",
    "Part",
    "ShardSource",
    "Sharding",
    "Source",
    "Span",
    "batch_images",
    "eval_loader",
    "in_memory",
    "make_index",
    "open_data",
    "refuse_packed",
    "span_loader",
    "steps_per_epoch",
    "stratified_split",
    "stratified_subset",
    "tars",
    "train_loader",
    "usable_cores",
    "view",
    "views",
]

import_on_use(
    __name__,
    {
        "uhkd.data.augment": ("Augmentation", "view"),
        "uhkd.data.batch": ("Batch",),
        "uhkd.data.batched": ("views",),
        "uhkd.data.descriptors": ("Descriptors",),
        "uhkd.data.index": ("INDEX",),
        "uhkd.data.loader": (
            "Loader",
            "batch_images",
            "eval_loader",
            "steps_per_epoch",
            "train_loader",
            "usable_cores",
        ),
        "uhkd.data.memory": ("in_memory",),
        "uhkd.data.opening": ("Data", "open_data"),
        "uhkd.data.sharded": ("Sharding", "ShardSource", "tars"),
        "uhkd.data.sources": ("ArraySource", "DatasetSource", "FileSource", "Part", "Source"),
        "uhkd.data.spans": ("Span", "span_loader"),
        "uhkd.data.splits": ("stratified_split", "stratified_subset"),
        "uhkd.data.tars": ("make_index", "refuse_packed"),
    },
)
