"""Selection of the trainings of a comparison that share a cache of their teacher's outputs, and of its content."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from uhkd.features import OutputShapes, PairShapes
from uhkd.methods import DistillationLoss, build_losses
from uhkd.recipe import CacheRecipe, DistillRecipe, RecipeError, build
from uhkd.recipe.cache import STORABLE
from uhkd.spectral import SpectralTarget, teacher_levels
from uhkd.training.cached_teacher import target_differences

_BATCH = 128  # images per forward pass of the teacher, or fewer if a training uses smaller batches
# example shapes, to find out what a method reads; the grids are large enough to distinguish the radii of spectra
_SHAPES = OutputShapes(((64, 64, 64), (64, 32, 32), (64, 16, 16), (64, 8, 8)), 64, 10)
_PAIR = PairShapes(_SHAPES, _SHAPES, 10, 1024)


@dataclass(frozen=True)
class CacheTask:
    """A cache to create. name: its folder in that of the comparison; options: of `CacheRecipe`; serves: names of trainings."""

    name: str
    options: dict[str, Any]
    serves: tuple[str, ...]


@dataclass(frozen=True)
class SpectraSettings:
    """Options of `CacheRecipe` that define the stored spectra."""

    radius: int
    form: str
    standardise: str
    channels: int | None


def shared_caches(trainings: Mapping[str, Mapping[str, Any]]) -> tuple[list[CacheTask], dict[str, str]]:
    """Return the caches that save time for the given trainings, and the reason of each training that uses none.

    A cache holds the views of all epochs of one seed, so that a training receives the same data with and without it. It costs as
    many forward passes of the teacher as one training; hence it saves time from two trainings on.
    """
    groups: dict[str, dict[str, tuple[frozenset[str], SpectraSettings | None]]] = {}
    recipes: dict[str, DistillRecipe] = {}
    live: dict[str, str] = {}
    for name, options in trainings.items():
        recipe = recipes[name] = build(DistillRecipe, options)
        needed = "name a cache already"
        if recipe.sampling == "balanced":
            needed = "draw an image several times an epoch, each time with a new view"
        elif recipe.teacher_cache is None:
            settings, weights = (json.dumps(x, sort_keys=True) for x in (recipe.settings, recipe.weights))
            needed = _outputs_needed(recipe.method, settings, weights)
        if isinstance(needed, str):
            live[name] = needed
        else:
            key = json.dumps([_shared_options(recipe), recipe.epochs], sort_keys=True)
            groups.setdefault(key, {})[name] = needed
    caches = []
    for group in groups.values():
        targets = Counter(spectra for _, spectra in group.values() if spectra is not None)
        most_common = targets.most_common(1)[0][0] if targets else None
        served = {name: fields for name, (fields, spectra) in group.items() if spectra in (None, most_common)}
        live |= dict.fromkeys(group.keys() - served.keys(), "need other spectra")
        if len(served) < 2:
            live |= dict.fromkeys(served, "share their views with no other training")
            continue
        fields = frozenset().union(*served.values())
        caches.append(_cache([recipes[name] for name in served], fields, most_common, tuple(served)))
    return caches, live


def _shared_options(recipe: DistillRecipe) -> dict[str, Any]:
    """Return the options that a training shares with its cache: images, views, teacher, number format."""
    common = CacheRecipe.model_fields.keys() & DistillRecipe.model_fields.keys()
    return recipe.model_dump(mode="json", include=common - {"out", "workers", "batch_size", "keep"})


def _cache(
    recipes: list[DistillRecipe], fields: frozenset[str], spectra: SpectraSettings | None, serves: tuple[str, ...]
) -> CacheTask:
    first = recipes[0]
    options = _shared_options(first) | {
        "views": first.epochs,
        "keep": [name for name in STORABLE if name in fields],
        "batch_size": min(_BATCH, *(r.batch_size // r.grad_accum_steps for r in recipes)),
        "workers": first.workers,
    }
    options |= vars(spectra) if spectra else {}
    # a name by content, so that an extended comparison never finds another cache under this name
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=3).hexdigest()
    return CacheTask(f"caches/{Path(str(first.teacher)).name}/seed-{first.seed}-{digest}", options, serves)


@lru_cache
def _outputs_needed(method: str, settings: str, weights: str) -> tuple[frozenset[str], SpectraSettings | None] | str:
    """Return the fields and spectra of the teacher that a method reads, or the reason why no cache can provide them.

    settings, weights: as JSON, which is hashable.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            losses = build_losses(method, _PAIR, json.loads(settings), json.loads(weights))
    except Exception:  # with the real networks the method may still work
        return "cannot be built for example shapes"
    needs = [loss.needs for loss in losses.values() if isinstance(loss, DistillationLoss)]
    fields = frozenset().union(*(need.teacher for need in needs))
    if not fields:
        return "need no teacher"
    if other := sorted(fields - set(STORABLE)):
        return f"read the teacher's {' and '.join(other)}"
    if "spectra" not in fields:
        return fields, None
    spectra = _spectra_settings(next(need.target for need in needs if need.target is not None))
    return "need targets that a cache cannot store" if spectra is None else (fields, spectra)


def _spectra_settings(target: SpectralTarget) -> SpectraSettings | None:
    """Return the options of a cache whose spectra equal the target, or None if there are none."""
    radius = max((axis - 1) // 2 for level in target.levels for axis in level.full_size)
    settings = SpectraSettings(radius, target.levels[0].form, target.standardise, target.channels)
    try:
        build(CacheRecipe, {"teacher": "any", "data": "any", "out": "any", **vars(settings)})
    except RecipeError:
        return None
    levels = teacher_levels(_SHAPES.maps, radius, target.levels[0].form)
    stored = SpectralTarget(levels, target.standardise, target.channels)
    return None if target_differences(target, stored) else settings
