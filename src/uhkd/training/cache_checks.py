"""Checks that a cache of teacher outputs belongs to the images, views and teacher of a training."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from uhkd.cache import CorruptShard, TeacherCache, image_checksums
from uhkd.console import log_info
from uhkd.data import DataSplits, IndexRange, range_loader
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.models import ModelConfig, fingerprint, fingerprint_of, read_safetensors
from uhkd.recipe import DataOptions, DistillRecipe, SourceOptions
from uhkd.runs import RunFolder, environment
from uhkd.training.geometry import same_shape
from uhkd.training.inputs import choose_augmentation, recorded_split

_CHECKED_VIEWS = 64  # computed again and compared with the stored ones before a cache is used
_UNSET = {("crop", "auto"), ("flip", None)}  # option values that leave the choice to the cache


def inherit_cache_views(recipe: DistillRecipe, run: RunFolder) -> DistillRecipe:
    """Return the recipe with its unset augmentation options and its open share of held-out images taken from its cache.

    A resumed run keeps its number of views.

    Raises:
        UhkdError: for a cache that cannot be read, or has fewer views than the recipe.
    """
    assert recipe.teacher_cache is not None
    manifest = TeacherCache(recipe.teacher_cache).manifest
    before = run.read_recipe().get("teacher_views") if run.started() else None
    views = recipe.teacher_views or before or manifest.views
    if views > manifest.views:
        raise UhkdError(
            f"teacher_views: expected at most {manifest.views}, which {recipe.teacher_cache} holds, found {views}"
        )
    inherited = {
        name: value
        for name, value in asdict(manifest.augmentation).items()
        if name != "size"  # each network resizes the images
        and name not in recipe.model_fields_set
        and (name, getattr(recipe, name)) not in _UNSET
    }
    if recipe.val_fraction is None:
        inherited["val_fraction"] = recorded_split(RunFolder(recipe.teacher_cache))
    return recipe.model_copy(update=inherited | {"teacher_views": views})


def open_cache(recipe: DistillRecipe, data: DataSplits, teacher: nn.Module | None = None) -> TeacherCache:
    """Return the cache of a recipe (see `inherit_cache_views`) if it is complete and of these images, views and this teacher.

    teacher: a module in place of the recipe's name.

    Raises:
        UhkdError: with every field that differs, the missing shards, or the view that differs from the stored one.
    """
    assert recipe.teacher_cache is not None and recipe.teacher_views is not None
    stored = TeacherCache(recipe.teacher_cache)
    manifest = stored.manifest
    if differing := _differences(recipe, data, stored, teacher):
        raise UhkdError(
            f"the cache {stored.folder} does not match this training; use its options (see {stored.folder / 'recipe.yaml'}), or "
            "create another (uhkd cache):\n  " + "\n  ".join(differing)
        )
    views = min(recipe.epochs, recipe.teacher_views)
    if missing := stored.shards.missing(views):
        first = CorruptShard(missing[0], stored.folder, stored.shards.state(missing[0]))
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UhkdError(f"{first}{more}")
    stored.tensors("")  # raises for a damaged file, before a run folder is created
    versions, current = manifest.environment.get("versions"), environment()["versions"]
    if not isinstance(versions, dict):
        raise UhkdError(f"{stored.folder / 'cache.json'} is damaged (environment: no versions): create the cache again")
    changed = [
        f"{name} {version} -> {current.get(name)}"
        for name, version in versions.items()
        if name != "uhkd" and version != current.get(name)
    ]
    if changed:
        log_info(f"  the cache was written with other versions ({', '.join(changed)}): its views are checked")
    checked = check_views(stored, data, views)
    # the validation images may differ if samples are identified by name
    stored.same_validation = manifest.validation in ("", data.validation)
    accuracy = manifest.teacher_metrics.get("accuracy")
    measured = "" if accuracy is None else f", validation accuracy {accuracy:.2%} when they were stored"
    log_info(
        f"teacher {manifest.teacher}: {manifest.views} stored views of {manifest.images:,} images from "
        f"{stored.folder}{measured}; {checked} views compared with the stored ones: equal"
    )
    if not stored.same_validation:
        log_info(
            "  its validation images differ from this run's: its accuracy is of those, its features are not recorded"
        )
    if views < recipe.epochs:
        log_info(
            f"  {views} stored views for {recipe.epochs} epochs: each is used {recipe.epochs / views:.3g} times, while a live "
            "teacher sees a new view in every epoch"
        )
    return stored


def log_view_mismatch(given: DistillRecipe, data: DataSplits, student: FeatureExtractor, stored: TeacherCache) -> None:
    """Log how the stored views differ from those of the same recipe with a live teacher."""
    live, cached = choose_augmentation(given, data, [student]), stored.manifest.augmentation
    differences = []
    if not same_shape(live, cached) or live.size[0] > cached.size[0] or live.size[1] > cached.size[1]:
        differences.append(f"images at {live.size[0]}x{live.size[1]}, not {cached.size[0]}x{cached.size[1]}")
    if live.crop != cached.crop:
        differences.append(f"crop {live.crop}, not {cached.crop}")
    if differences:
        log_info(
            f"  with a live teacher this student would see {' and '.join(differences)}: this is a different training"
        )


def cache_metadata(stored: TeacherCache, recipe: DistillRecipe) -> dict[str, Any]:
    """Return the facts about the cache for result.json."""
    manifest = stored.manifest
    return {
        "teacher": manifest.teacher,
        "teacher_metrics": manifest.teacher_metrics if stored.same_validation else {},
        "teacher_fingerprint": manifest.identity.get("teacher"),
        "teacher_cache": {
            "key": manifest.key,
            "views": min(recipe.teacher_views or manifest.views, recipe.epochs),
            "seed": manifest.seed,
            "storage": manifest.record_format.storage,
        },
    }


def check_views(stored: TeacherCache, data: DataSplits, views: int, *, damaged_too: bool = True) -> int:
    """Compute some views again, compare pixels and targets bit by bit with the stored checksums, and return how many.

    This finds changed pixels in files of the same name, and libraries that augment differently. It is an early check, always of
    the same views; the training compares every view that it uses.

    damaged_too: whether to raise for a damaged record, or to skip it.

    Raises:
        UhkdError: with the first view that differs.
    """
    manifest, shards = stored.manifest, stored.shards
    complete = [shard for view in range(views) for shard in shards.of_view(view) if shards.is_complete(shard)]
    rng, count = np.random.default_rng(0), min(_CHECKED_VIEWS, 2 * manifest.images)
    # a training may use some of the stored samples, in another order, if they have keys
    index_of_row = {int(row): index for index, row in enumerate(stored.row_indices(np.arange(len(data.train))))}
    checked = 0
    for number in rng.integers(len(complete), size=count).tolist() if complete else ():
        shard = complete[number]
        row = int(rng.integers(shard.start, shard.stop))
        if row not in index_of_row:
            continue
        index, checked = index_of_row[row], checked + 1
        ranges = [IndexRange(shard.view, index, index + 1)]
        loader = range_loader(
            data.train, manifest.augmentation, ranges, seed=manifest.seed, num_classes=len(data.classes)
        )
        batch = next(iter(loader))
        try:
            shards.read_for(shard.view, np.array([row]), image_checksums(batch.image, batch.target))
        except CorruptShard:
            if damaged_too:
                raise
    return checked


def _differences(recipe: DistillRecipe, data: DataSplits, stored: TeacherCache, teacher: nn.Module | None) -> list[str]:
    """Return a line for each difference between a cache and the recipe, data and teacher of a training."""
    manifest, differences = stored.manifest, []
    expected: dict[str, Any] = {"classes": len(data.classes)}
    keys = getattr(data.train, "keys", None)
    if keys is None or stored.keys() is None or manifest.augmentation.mixes:
        if data.fingerprint != manifest.identity.get("data"):
            differences.append(data_mismatch(recipe, stored))
        if manifest.images != len(data.train):
            differences.append(f"images: the cache has {manifest.images}, the data {len(data.train)}")
    elif missing := stored.map_keys(keys):
        differences.append(
            f"data: {missing:,} of {len(keys):,} samples are not in the cache (samples are found by name)"
        )
    views = {name: getattr(recipe, name) for name in asdict(manifest.augmentation) if name != "size"}
    expected |= {f"view {name}": value for name, value in views.items() if (name, value) not in _UNSET}
    if recipe.teacher_levels is not None:
        expected["teacher levels"] = recipe.teacher_levels
    if recipe.teacher_options:
        expected["teacher options"] = recipe.teacher_options
    differences += stored.differences(expected)
    for name, value in manifest.teacher_options.items():
        # a later version may have written options that are unknown here
        if name in DistillRecipe.model_fields and (given := getattr(recipe, name)) not in (None, "auto", value):
            differences.append(f"{name}: the cache was created with {value!r}, the recipe has {given!r}")
    if teacher is not None:
        module = teacher.module if isinstance(teacher, FeatureExtractor) else teacher
        if fingerprint(module) != manifest.identity.get("teacher weights"):
            differences.append("teacher: the weights of the given module are not those of the teacher that was stored")
    elif isinstance(recipe.teacher, str):
        run = RunFolder(recipe.teacher)
        if run.has_model():
            differences += _teacher_differences(run, stored)
        elif recipe.teacher != manifest.teacher:
            differences.append(f"teacher: the cache is of {manifest.teacher}, the recipe has {recipe.teacher}")
    return differences


def data_mismatch(recipe: DataOptions, stored: TeacherCache) -> str:
    """Return how the images differ from those of a cache: by the changed options of its recipe, or by changed files."""
    run = RunFolder(stored.folder)
    before = run.read_recipe() if run.started() else {}
    names = {"data", "val_fraction", "train_limit", *SourceOptions.model_fields}
    options = recipe.model_dump(mode="json", include=names)
    changes = [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in options.items()
        if name in before and before[name] != value
    ]
    same = "with the same options: files, their labels or their order have changed since it was created"
    return f"data: other images or labels than the cache's, {', '.join(changes) or same}"


def _teacher_differences(run: RunFolder, stored: TeacherCache) -> list[str]:
    """Return a line for each difference between the network of a run folder and the teacher of a cache."""
    config, differences = ModelConfig.from_json(run.read_config()), []
    # networks are float32, also those from files of half precision
    state = {
        k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
        for k, v in read_safetensors(run.weights).items()
    }
    if fingerprint_of(state) != stored.manifest.identity.get("teacher weights"):
        differences.append(f"teacher: the weights in {run.path} are not those of the teacher that was stored")
    preprocessing = {
        "teacher mean": config.mean,
        "teacher std": config.std,
        "teacher interpolation": config.interpolation,
    }
    return differences + stored.differences(preprocessing)
