"""The batches of a training."""

from collections.abc import Iterator

from uhkd.data import Batch, Loader, train_loader
from uhkd.training.cached_teacher import CachedTeacher
from uhkd.training.setup import Setup


class DataLoadingError(Exception):
    """The next batch could not be loaded. Raised between two steps, so that the state can still be saved."""


def train_batches(setup: Setup, start_step: int) -> Iterator[Batch]:
    """Return the batches of all steps from `start_step`; the iterator raises `DataLoadingError` for errors of the loader."""
    cached = setup.teacher if isinstance(setup.teacher, CachedTeacher) else None
    loader = train_loader(
        setup.data.train,
        setup.augmentation,
        seed=setup.recipe.seed,
        batch_size=setup.recipe.batch_size,
        epochs=setup.recipe.epochs,
        num_classes=len(setup.data.classes),
        start_step=start_step,
        workers=setup.workers,
        rank=setup.fabric.global_rank,
        world_size=setup.fabric.world_size,
        views=cached and cached.views,
        view_seed=cached and cached.stored.manifest.seed,
        record_reader=cached and cached.stored.read_records,
        device=setup.fabric.device,
    )
    return _wrap_errors(loader)


def _wrap_errors(loader: Loader) -> Iterator[Batch]:
    try:
        yield from loader
    except ValueError as error:
        raise DataLoadingError(str(error)) from error
