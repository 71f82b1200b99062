"""Stored signals in place of a teacher: whether they are those of these images, views and teacher."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from uhkd.cache import CorruptShard, TeacherCache, image_checksums
from uhkd.console import log_info
from uhkd.data import DataSplits, IndexRange, span_loader
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.models import ModelCard, fingerprint, fingerprint_of, read_safetensors
from uhkd.recipe import DataOptions, DistillRecipe
from uhkd.runs import RunFolder, environment
from uhkd.training.inputs import choose_augmentation

_LOOKED_AT = 64  # views made anew and compared with those that the teacher saw before a cache is used
_OPEN = {("crop", "auto"), ("flip", None)}  # words that leave the choice to others, here to the cache


def inherit_cache_views(recipe: DistillRecipe, run: RunFolder) -> DistillRecipe:
    """The recipe with what it leaves open about views taken from its cache; a run that is resumed keeps its number of views.

    Raises:
        UhkdError: for a cache that cannot be read, or holds fewer views than asked for.
    """
    assert recipe.teacher_cache is not None
    manifest = TeacherCache(recipe.teacher_cache).manifest
    own = {k: v for k, v in asdict(manifest.augmentation).items() if k != "size"}  # each network resizes for itself
    before = run.read_recipe().get("teacher_views") if run.started() else None
    views = recipe.teacher_views or before or manifest.views
    if views > manifest.views:
        raise UhkdError(
            f"teacher_views: expected at most {manifest.views}, which {recipe.teacher_cache} holds, found {views}"
        )
    left_open = {
        k: v for k, v in own.items() if k not in recipe.model_fields_set and (k, getattr(recipe, k)) not in _OPEN
    }
    return recipe.model_copy(update=left_open | {"teacher_views": views})


def open_cache(recipe: DistillRecipe, data: DataSplits, teacher: nn.Module | None = None) -> TeacherCache:
    """The cache of a recipe (see `inherit_cache_views`), if it is whole and of these images, views and this teacher.

    teacher: an object of the user's own, in place of the recipe's word.

    Raises:
        UhkdError: naming every field that differs, the shards that are missing, or a view that is not the stored one.
    """
    assert recipe.teacher_cache is not None and recipe.teacher_views is not None
    stored = TeacherCache(recipe.teacher_cache)
    manifest = stored.manifest
    if differing := _differences(recipe, data, stored, teacher):
        raise UhkdError(
            f"the cache {stored.folder} is not of this training; say what it says (its words: {stored.folder / 'recipe.yaml'}), "
            "or make another (uhkd cache):\n  " + "\n  ".join(differing)
        )
    views = min(recipe.epochs, recipe.teacher_views)
    if missing := stored.shards.missing(views):
        first = CorruptShard(missing[0], stored.folder, stored.shards.state(missing[0]))
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UhkdError(f"{first}{more}")
    stored.tensors("")  # damaged ones are refused before a run folder is made
    versions, now = manifest.environment.get("versions"), environment()["versions"]
    if not isinstance(versions, dict):
        raise UhkdError(
            f"{stored.folder / 'cache.json'} is damaged (environment: no versions): the cache must be made anew"
        )
    if changed := [f"{k} {versions[k]} -> {now.get(k)}" for k in versions if k != "uhkd" and versions[k] != now.get(k)]:
        log_info(f"  the cache was written with other versions ({', '.join(changed)}): its views are checked")
    looked = check_views(stored, data, views)
    # samples known by their names may come with other images for validation
    stored.same_validation = manifest.validation in ("", data.validation)
    accuracy = manifest.teacher_metrics.get("accuracy")
    known = "" if accuracy is None else f", validation accuracy {accuracy:.2%} when they were stored"
    log_info(
        f"teacher {manifest.teacher}: {manifest.views} stored views of {manifest.images:,} images from {stored.folder}{known}; "
        f"{looked} views compared with those it saw: equal"
    )
    if not stored.same_validation:
        log_info(
            "  its validation images are not this run's: its accuracy is that on others, and its features are not noted"
        )
    if views < recipe.epochs:
        log_info(
            f"  {views} stored views for {recipe.epochs} epochs: each is shown {recipe.epochs / views:.3g} times, which is "
            "another training than with a new view every epoch"
        )
    return stored


def log_view_mismatch(given: DistillRecipe, data: DataSplits, student: FeatureExtractor, stored: TeacherCache) -> None:
    """Say where a student by the recipe as asked would see other views beside its live teacher than the stored ones."""
    live, own = choose_augmentation(given, data, [student]), stored.manifest.augmentation
    others = []
    if live.size[0] > own.size[0] or live.size[1] > own.size[1]:
        others.append(f"images at {live.size[0]}x{live.size[1]}, not {own.size[0]}x{own.size[1]}")
    if live.crop != own.crop:
        others.append(f"crop {live.crop}, not {own.crop}")
    if others:
        log_info(f"  beside its live teacher this student would see {' and '.join(others)}: this is another training")


def cache_metadata(stored: TeacherCache, recipe: DistillRecipe) -> dict[str, Any]:
    """What a run notes about the cache that it learned from."""
    manifest = stored.manifest
    return {
        "teacher": manifest.teacher,
        "teacher_metrics": manifest.teacher_metrics if stored.same_validation else {},
        "teacher_fingerprint": manifest.identity.get("teacher"),
        "teacher_cache": {
            "key": manifest.key,
            "views": min(recipe.teacher_views or manifest.views, recipe.epochs),
            "seed": manifest.seed,
            "storage": manifest.layout.storage,
        },
    }


def check_views(stored: TeacherCache, data: DataSplits, views: int, *, damaged_too: bool = True) -> int:
    """Make some stored views anew and compare their pixels and targets, bit by bit, with those the teacher saw; how many.

    The listing of a folder does not show when a file's pixels change, nor does it know how a library augments. It is an early
    look, always at the same places; a training compares every view that it shows.

    damaged_too: whether a record that was damaged is an error here, or overlooked.

    Raises:
        UhkdError: naming the first view that differs.
    """
    manifest, shards = stored.manifest, stored.shards
    complete = [shard for view in range(views) for shard in shards.of_view(view) if shards.is_complete(shard)]
    draw, count = np.random.default_rng(0), min(_LOOKED_AT, 2 * manifest.images) if complete else 0
    # by sample keys a training may show some of the samples, in another order
    places = {int(row): place for place, row in enumerate(stored.rows(np.arange(len(data.train))))}
    looked = 0
    for number in draw.integers(len(complete), size=count).tolist() if complete else ():
        shard = complete[number]
        row = int(draw.integers(shard.start, shard.stop))
        if row not in places:
            continue
        index, looked = places[row], looked + 1
        span = [IndexRange(shard.view, index, index + 1)]
        loader = span_loader(data.train, manifest.augmentation, span, seed=manifest.seed, num_classes=len(data.classes))
        batch = next(iter(loader))
        try:
            shards.read_for(shard.view, np.array([row]), image_checksums(batch.image, batch.target))
        except CorruptShard:
            if damaged_too:
                raise
    return looked


def _differences(recipe: DistillRecipe, data: DataSplits, stored: TeacherCache, teacher: nn.Module | None) -> list[str]:
    manifest = stored.manifest
    wanted: dict[str, Any] = {"classes": len(data.classes)}
    found = []
    keys = getattr(data.train, "keys", None)
    if keys is None or stored.keys() is None or stored.manifest.augmentation.mixes:
        if data.fingerprint != manifest.identity.get("data"):
            found.append(data_mismatch(recipe, stored))
        if manifest.images != len(data.train):
            found.append(f"images: the cache has {manifest.images}, the data {len(data.train)}")
    elif missing := stored.serve(keys):
        found.append(
            f"data: {missing:,} of {len(keys):,} samples are not in the cache, which knows samples by their names"
        )
    views = {name: getattr(recipe, name) for name in asdict(manifest.augmentation) if name != "size"}
    wanted |= {f"view {name}": value for name, value in views.items() if (name, value) not in _OPEN}
    if recipe.teacher_levels is not None:
        wanted["teacher levels"] = recipe.teacher_levels
    if recipe.teacher_options:
        wanted["teacher options"] = recipe.teacher_options
    found += stored.differences(wanted)
    for name, value in manifest.teacher_options.items():
        if name not in DistillRecipe.model_fields:
            continue  # of a version to come
        if (given := getattr(recipe, name)) not in (None, "auto", value):
            found.append(f"{name}: the cache was made with {value!r}, asked for is {given!r}")
    if teacher is not None:
        module = teacher.module if isinstance(teacher, FeatureExtractor) else teacher
        if fingerprint(module) != manifest.identity.get("teacher weights"):
            found.append("teacher: the weights of the one given are not those of the teacher that was stored")
    elif isinstance(recipe.teacher, str):
        run = RunFolder(recipe.teacher)
        if run.exists():
            found += _other_teacher(run, stored)
        elif recipe.teacher != manifest.teacher:
            found.append(f"teacher: the cache is of {manifest.teacher}, asked for is {recipe.teacher}")
    return found


def data_mismatch(recipe: DataOptions, stored: TeacherCache) -> str:
    """In which words the images differ from a cache's, as far as its recipe tells; else that files have changed."""
    run = RunFolder(stored.folder)
    before = run.read_recipe() if run.started() else {}
    now = recipe.model_dump(mode="json", include={"data", "val_fraction", "train_limit", "skip_bad_images"})
    changes = [
        f"{name} was {before[name]!r}, is {now[name]!r}" for name in now if name in before and before[name] != now[name]
    ]
    same = "by the same words: files, their labels or their order have changed since it was made"
    return f"data: other images or labels than the cache's, {', '.join(changes) or same}"


def _other_teacher(run: RunFolder, stored: TeacherCache) -> list[str]:
    """What a run folder says of its network and the cache does not."""
    card, found = ModelCard.from_json(run.read_card()), []
    # a network is built in float32, also from a file of half precision
    state = {
        k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
        for k, v in read_safetensors(run.weights).items()
    }
    if fingerprint_of(state) != stored.manifest.identity.get("teacher weights"):
        found.append(f"teacher: the weights in {run.path} are not those of the teacher that was stored")
    reading = {"teacher mean": card.mean, "teacher std": card.std, "teacher interpolation": card.interpolation}
    return found + stored.differences(reading)
