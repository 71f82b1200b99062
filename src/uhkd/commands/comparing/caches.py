"""Which trainings of a comparison can learn from one cache of their teacher's signals, and what it must hold."""

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
from uhkd.methods import DistillationLoss
from uhkd.methods import build_losses as build_method
from uhkd.recipe import CacheRecipe, DistillRecipe, RecipeError, build
from uhkd.recipe.cache import STORABLE
from uhkd.spectral import SpectralTarget, teacher_levels
from uhkd.training.cached_teacher import target_differences

_BATCH = 128  # images per forward pass of the teacher, fewer where the trainings take fewer
# any networks' shapes, to ask a method what it reads; the large grid tells the radii that spectra of it can have apart
_SIDE = OutputShapes(((64, 64, 64), (64, 32, 32), (64, 16, 16), (64, 8, 8)), 64, 10)
_ANYTHING = PairShapes(_SIDE, _SIDE, 10, 1024)


@dataclass(frozen=True)
class CacheTask:
    """A cache to be made. name: its folder below the comparison's; words: of `CacheRecipe`; serves: trainings by name."""

    name: str
    options: dict[str, Any]
    serves: tuple[str, ...]


@dataclass(frozen=True)
class SpectraSettings:
    """The words by which a cache stores a method's spectra."""

    radius: int
    form: str
    standardise: str
    channels: int | None


def shared_caches(trainings: Mapping[str, Mapping[str, Any]]) -> tuple[list[CacheTask], dict[str, str]]:
    """The caches that pay for trainings given by name and words, and of every other training why it goes without.

    A cache holds the views of one seed's epochs, so that each training sees what it would see with its teacher. It costs as
    many passes of the teacher as one training makes: from two trainings on it saves some.
    """
    groups: dict[str, dict[str, tuple[frozenset[str], SpectraSettings | None]]] = {}
    recipes: dict[str, DistillRecipe] = {}
    live: dict[str, str] = {}
    for name, options in trainings.items():
        recipe = recipes[name] = build(DistillRecipe, options)
        read = _reads(recipe)
        if isinstance(read, str):
            live[name] = read
        else:
            key = json.dumps([_views(recipe), recipe.epochs], sort_keys=True)
            groups.setdefault(key, {})[name] = read
    found = []
    for group in groups.values():
        targets = Counter(spectra for _, spectra in group.values() if spectra is not None)
        most_common = targets.most_common(1)[0][0] if targets else None
        served = {name: fields for name, (fields, spectra) in group.items() if spectra in (None, most_common)}
        live |= dict.fromkeys(group.keys() - served.keys(), "want other spectra")
        if len(served) < 2:
            live |= dict.fromkeys(served, "share views with no other")
            continue
        fields = frozenset().union(*served.values())
        found.append(_cache([recipes[name] for name in served], fields, most_common, tuple(served)))
    return found, live


def _views(recipe: DistillRecipe) -> dict[str, Any]:
    """The words of a training that a cache of its teacher has too: images, views, teacher, number format."""
    common = CacheRecipe.model_fields.keys() & DistillRecipe.model_fields.keys()
    return recipe.model_dump(mode="json", include=common - {"out", "workers", "batch_size"})


def _cache(
    recipes: list[DistillRecipe], fields: frozenset[str], spectra: SpectraSettings | None, serves: tuple[str, ...]
) -> CacheTask:
    first = recipes[0]
    options = _views(first) | {"views": first.epochs, "keep": [name for name in STORABLE if name in fields]}
    options |= {
        "batch_size": min(_BATCH, *(r.batch_size // r.grad_accum_steps for r in recipes)),
        "workers": first.workers,
    }
    options |= vars(spectra) if spectra else {}
    # by its words, so that a comparison that grows never finds another cache under the name of this one
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=3).hexdigest()
    return CacheTask(f"caches/{Path(str(first.teacher)).name}/seed-{first.seed}-{digest}", options, serves)


def _reads(recipe: DistillRecipe) -> tuple[frozenset[str], SpectraSettings | None] | str:
    """The fields of the teacher that a training reads and the spectra it wants, or why no cache of ours can serve it."""
    if recipe.teacher_cache is not None:
        return "name a cache of their own"
    return _outputs_needed(
        recipe.method, *(json.dumps(value, sort_keys=True) for value in (recipe.settings, recipe.weights))
    )


@lru_cache
def _outputs_needed(method: str, settings: str, weights: str) -> tuple[frozenset[str], SpectraSettings | None] | str:
    try:
        with torch.random.fork_rng(devices=[]):
            distillers = build_method(method, _ANYTHING, json.loads(settings), json.loads(weights))
    except Exception:  # a method that knows more than we do; with its own networks it may well work
        return "cannot be foreseen"
    needs = [distiller.needs for distiller in distillers.values() if isinstance(distiller, DistillationLoss)]
    fields = frozenset().union(*(need.teacher for need in needs))
    if not fields:
        return "need no teacher"
    if beyond := sorted(fields - set(STORABLE)):
        return f"read the teacher's {' and '.join(beyond)}"
    if "spectra" not in fields:
        return fields, None
    target = next(need.target for need in needs if need.target is not None)
    spectra = _stored_as(target)
    return "want targets that a cache does not hold" if spectra is None else (fields, spectra)


def _stored_as(target: SpectralTarget) -> SpectraSettings | None:
    """The words of a cache whose spectra meet the target; None where there are none."""
    radius = max((axis - 1) // 2 for level in target.levels for axis in level.full_size)
    found = SpectraSettings(radius, target.levels[0].form, target.standardise, target.channels)
    try:
        build(CacheRecipe, {"teacher": "any", "data": "any", "out": "any", **vars(found)})
    except RecipeError:
        return None
    own = SpectralTarget(teacher_levels(_SIDE.maps, radius, target.levels[0].form), target.standardise, target.channels)
    return None if target_differences(target, own) else found
