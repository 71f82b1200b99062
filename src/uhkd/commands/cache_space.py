"""Record format of a teacher, and the disk space of a cache."""

import shutil
from pathlib import Path

from uhkd.cache import RecordFormat, Shards
from uhkd.console import file_size, log_info
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.recipe import CacheRecipe
from uhkd.spectral import SpectralTarget, resolve_channels, teacher_levels
from uhkd.training import Teacher


def record_format(recipe: CacheRecipe, network: FeatureExtractor) -> tuple[RecordFormat, SpectralTarget | None]:
    """Return the record format of a teacher, and the target of the stored spectra.

    Raises:
        UhkdError: the teacher lacks a requested field, or there is nothing to store.
    """
    shapes, target = network.shapes, None
    for field, size in (("logits", shapes.logits), ("embedding", shapes.embedding), ("spectra", shapes.maps)):
        if field in recipe.keep and not size:
            if "keep" in recipe.model_fields_set:
                raise UhkdError(
                    f"keep: the teacher has no {'feature maps for spectra' if field == 'spectra' else field}"
                )
            log_info(f"  the teacher has no {field}: not stored")
    if "spectra" in recipe.keep and shapes.maps:
        levels = teacher_levels(shapes.maps, recipe.radius, recipe.form)
        target = SpectralTarget(levels, recipe.standardise, resolve_channels(recipe.channels, recipe.form))
    ftm = Teacher(network, target).ftm
    available = {"logits": shapes.logits, "embedding": shapes.embedding}
    sizes = {name: size if name in recipe.keep else None for name, size in available.items()}
    layout = RecordFormat(**sizes, spectra=() if ftm is None else ftm.shapes, storage=recipe.storage)
    if not layout.holds:
        raise UhkdError(f"nothing to store: the teacher has none of {', '.join(recipe.keep)}")
    return layout, target


def check_disk_space(folder: Path, shards: Shards, layout: RecordFormat, views: int) -> str:
    """Describe the size of a cache and the bytes still to write.

    Raises:
        UhkdError: the disk is too small.
    """
    total = sum(shards.bytes_of(shard) for view in range(views) for shard in shards.of_view(view))
    todo = sum(map(shards.bytes_of, shards.missing(views)))
    free = shutil.disk_usage(folder).free
    if todo > free:
        raise UhkdError(
            f"{folder} has {file_size(free)} free, but {file_size(todo)} must be written; use fewer --views, "
            "--storage int8, fewer fields in --keep, fewer --channels, or another --out"
        )
    return (
        f"{shards.images:,} images x {views} views, {layout.size:,} bytes each ({', '.join(layout.holds)}, "
        f"{layout.storage}): {file_size(total)} in total, {file_size(todo)} to write, {file_size(free)} free"
    )
