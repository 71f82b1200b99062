"""The batches of a training."""

from collections.abc import Iterator

from uhkd.data import Batch, BatchPlan, Loader, ViewPlan, train_loader
from uhkd.errors import UhkdError
from uhkd.training.cached_teacher import CachedTeacher
from uhkd.training.setup import Setup


class DataLoadingError(Exception):
    """The next batch could not be loaded. Raised between two steps, so that the state can still be saved."""


def train_batches(setup: Setup, start_step: int) -> Iterator[Batch]:
    """Return the batches of all steps from `start_step`; the iterator raises `DataLoadingError` for data that cannot be read."""
    recipe, fabric = setup.recipe, setup.fabric
    views = None
    if isinstance(setup.teacher, CachedTeacher):
        cache = setup.teacher.stored
        views = ViewPlan(cache.manifest.seed, setup.teacher.views, cache.read_records)
    balanced = recipe.sampling == "balanced"
    rank, processes = fabric.global_rank, fabric.world_size
    loader = train_loader(
        setup.data.train,
        setup.augmentation,
        BatchPlan(recipe.seed, recipe.batch_size, recipe.epochs, start_step, rank, processes, balanced),
        num_classes=len(setup.data.classes),
        views=views,
        workers=setup.workers,
        device=fabric.device,
    )
    return _wrap_errors(loader)


def _wrap_errors(loader: Loader) -> Iterator[Batch]:
    try:
        yield from loader
    except UhkdError as error:
        raise DataLoadingError(str(error)) from error
