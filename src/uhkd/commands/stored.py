"""Stored signals in place of a teacher: whether they are those of these images, views and teacher."""

from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors.torch import load_file

from uhkd.commands.setup import say
from uhkd.data import Data, Span, span_loader
from uhkd.models import fingerprint_of
from uhkd.recipe import DistillRecipe
from uhkd.runs import RunFolder, environment
from uhkd.stored import DamagedShard, Stored, picture_sums

_LOOKED_AT = 64  # views made anew and compared with those that the teacher saw, each time a cache is used


def open_stored(recipe: DistillRecipe, data: Data, folder: RunFolder) -> Stored:
    """The recipe's cache, if it is whole and of these images, views and this teacher.

    Raises:
        ValueError: naming every field that differs, the shards that are missing, or a view that is not the stored one.
    """
    assert recipe.teacher_cache is not None
    stored = Stored(recipe.teacher_cache)
    manifest = stored.manifest
    if differing := _differences(recipe, data, stored):
        raise ValueError(
            f"the cache {stored.folder} is not of this training:\n  "
            + "\n  ".join(differing)
            + "\nsay what it says (its words: "
            f"{stored.folder / 'recipe.yaml'}), or make another: uhkd cache"
        )
    views = min(recipe.epochs, manifest.views)
    if missing := stored.shards.missing(views):
        first = DamagedShard(missing[0], stored.folder, "is missing or cut short")
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{first}{more}")
    versions, now = manifest.environment["versions"], environment()["versions"]
    if changed := [f"{k} {versions[k]} -> {now.get(k)}" for k in versions if k != "uhkd" and versions[k] != now.get(k)]:
        say(f"  the cache was written with other versions ({', '.join(changed)}): its views are checked")
    looked = check_views(stored, data, views)
    accuracy = manifest.teacher_metrics.get("accuracy")
    known = "" if accuracy is None else f", validation accuracy {accuracy:.2%} when they were stored"
    say(
        f"teacher {manifest.teacher}: {manifest.views} stored views of {manifest.images:,} images from {stored.folder}{known}; "
        f"{looked} views compared with those it saw: equal"
    )
    _tell_views(stored, recipe.epochs)
    return stored


def facts_of(stored: Stored, epochs: int) -> dict[str, Any]:
    """What a run notes about the cache that it learned from."""
    manifest = stored.manifest
    return {
        "teacher": manifest.teacher,
        "teacher_metrics": manifest.teacher_metrics,
        "teacher_fingerprint": manifest.identity["teacher"],
        "teacher_cache": {
            "key": manifest.key,
            "views": min(manifest.views, epochs),
            "seed": manifest.seed,
            "storage": manifest.layout.storage,
        },
    }


def check_views(stored: Stored, data: Data, views: int, seed: int = 0) -> int:
    """Make some views anew and compare their pixels and targets, bit by bit, with those the teacher saw; how many.

    The listing of a folder does not show when a file's pixels change, nor does it know how a library augments.

    Raises:
        ValueError: naming the first view that differs.
    """
    manifest = stored.manifest
    chosen = np.random.default_rng(seed).integers(
        (views, manifest.images), size=(min(_LOOKED_AT, 2 * manifest.images), 2)
    )
    for view, index in chosen.tolist():
        span = [Span(view, index, index + 1)]
        loader = span_loader(data.train, manifest.augmentation, span, seed=manifest.seed, num_classes=len(data.classes))
        batch = next(iter(loader))
        if picture_sums(batch.image, batch.target)[0] != stored.shards.pictures(view, np.array([index]))[0]:
            raise ValueError(
                f"view {view} of image {index} is not the one whose signals {stored.folder} holds: its file has changed, or "
                "another version of a library augments in another way; make the cache anew (another --out), or use the "
                f"versions in {stored.folder / 'environment.json'}"
            )
    return len(chosen)


def _differences(recipe: DistillRecipe, data: Data, stored: Stored) -> list[str]:
    manifest = stored.manifest
    wanted: dict[str, Any] = {"data": data.fingerprint, "classes": len(data.classes)}
    own = asdict(manifest.augmentation)
    for name in own:
        # what the recipe leaves open follows the cache; size is the cache's, each network resizes for itself
        if name != "size" and (said := getattr(recipe, name)) not in (None if name == "flip" else "auto",):
            wanted[f"view {name}"] = said
    found = stored.differences(wanted)
    if recipe.teacher is not None:
        run = RunFolder(recipe.teacher)
        if run.exists():
            weights = fingerprint_of(load_file(run.weights))
            if weights != manifest.identity["teacher weights"]:
                found.append(f"teacher: the weights in {run.path} are not those of the teacher that was stored")
        elif recipe.teacher != manifest.teacher:
            found.append(f"teacher: the cache is of {manifest.teacher}, asked for is {recipe.teacher}")
    return found


def _tell_views(stored: Stored, epochs: int) -> None:
    views = stored.manifest.views
    if views < epochs:
        say(
            f"  {views} stored views for {epochs} epochs: each is shown {epochs / views:.3g} times, which is another "
            "training than with a new view every epoch"
        )
