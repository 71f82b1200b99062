"""A comparison's caches at work: made if they pay and fit, and used by the trainings that would see the same without."""

import contextlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from uhkd.cache import TeacherCache
from uhkd.commands.caching import cache
from uhkd.console import log_info, pluralize
from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods import DistillationLoss
from uhkd.methods import build_losses as build_method
from uhkd.models import create
from uhkd.recipe import CacheRecipe, DistillRecipe, build
from uhkd.runs import RunFolder, write_atomically
from uhkd.training.cached_teacher import check_needs, target_differences
from uhkd.training.inputs import choose_augmentation, open_recipe_data

_COMPLETE = "whole"  # the file in a cache's folder that says so: looking for every shard would take a while, each time


def is_complete(folder: Path) -> bool:
    """Whether a cache is complete, as far as is known."""
    return (folder / _COMPLETE).is_file()


def invalidate(folder: Path, error: Exception) -> None:
    """Have a cache looked through before it is used again, if a training ended by its fault; what is damaged is made anew."""
    if str(folder) in str(error):  # loaders pass on what a `CorruptShard` says, not the exception itself
        (folder / _COMPLETE).unlink(missing_ok=True)


def resolve_cache(
    options: Mapping[str, Any], folder: RunFolder, cache: Path | None, failure: str | None
) -> dict[str, Any]:
    """The words a training runs by: with its cache, or with its teacher where that cannot be, and then the reason is told.

    A training that was begun goes on as it began; only if its cache is gone it is begun anew. A comparison's folder may be
    moved: a cache is known by its name, which tells of its words, and by its key, which is in the training's checkpoint.

    Args:
        folder: the training's.
        cache: the one meant for it. failure: why that was not made.
    """
    if "teacher_cache" in options:  # the user's own
        return dict(options)
    if folder.started():
        began_by = folder.read_recipe().get("teacher_cache")
        if began_by is None:
            return dict(options)
        moved = [] if cache is None or cache.name != Path(began_by).name else [cache]
        for there in (*moved, Path(began_by)):
            if is_complete(there):
                return {**options, "teacher_cache": str(there)}
        log_info(f"this training began by {began_by}, which is gone: it begins anew")
        shutil.rmtree(folder.path)
    if cache is None:
        return dict(options)
    try:
        why = (
            incompatibility(options, TeacherCache(cache)) if is_complete(cache) else failure or f"{cache} was not made"
        )
    except ValueError as error:
        invalidate(cache, error)
        why = str(error)
    if why is None:
        return {**options, "teacher_cache": str(cache)}
    log_info(f"running with the teacher, not with its stored signals: {why}")
    return dict(options)


def incompatibility(options: Mapping[str, Any], stored: TeacherCache) -> str | None:
    """Why a cache would make a training another one than its teacher makes; None where both are the same."""
    manifest, recipe = stored.manifest, build(DistillRecipe, options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the training itself says all of this once more
            data = open_recipe_data(recipe)
            student = create(
                recipe.student,
                num_classes=len(data.classes),
                start="random",
                image_size=recipe.image_size,
                options=recipe.student_options,
                levels=recipe.student_levels or 4,
            )
            alone = choose_augmentation(recipe, data, [student])
            shapes = PairShapes(student.shapes, manifest.shapes, len(data.classes), len(data.train))
            distillers = build_method(recipe.method, shapes, recipe.settings, recipe.weights)
        for name, distiller in distillers.items():
            assert isinstance(distiller, DistillationLoss)
            check_needs(name, distiller.needs, stored)
            target = distiller.needs.target
            if target is not None and (differing := target_differences(target, manifest.target)):
                return f"{name} wants other spectra: {'; '.join(differing)}"
    except ValueError as error:  # what is wrong with the training itself is told when it runs
        return str(error)
    # the teacher's size is the stored one, or no smaller and cut down to that of the images, as the student's is
    height, width = (max(pair) for pair in zip(alone.size, manifest.size, strict=True))
    live, own = asdict(replace(alone, size=(height, width))), asdict(manifest.augmentation)
    differing = [f"{name} {live[name]}, stored {own[name]}" for name in live if live[name] != own[name]]
    return f"its views are others: {'; '.join(differing)}" if differing else None


def store(out: Path, name: str, options: Mapping[str, Any], served: Mapping[str, Mapping[str, Any]]) -> None:
    """Make a comparison's cache, or go on with it.

    Args:
        out: the comparison's folder. name: of the cache. served: the trainings it is meant for, by name and words.

    Raises:
        UhkdError: when fewer trainings than two would use it, or all caches together take more than half of the free disk.
    """
    folder, fresh, began = out / name, not TeacherCache.exists(out / name), time.monotonic()
    left = {n: w for n, w in served.items() if _may_use(RunFolder(out / n), folder)}
    enough = 1 if any(RunFolder(out / n).started() for n in left) else 2  # one that began by it cannot go on without

    def admit(stored: TeacherCache) -> None:
        reasons = {n: why for n, w in left.items() if (why := incompatibility(w, stored)) is not None}
        if len(left) - len(reasons) < enough:
            lines = "".join(f"\n  {n}: {why}" for n, why in reasons.items())
            raise UhkdError(f"only {len(left) - len(reasons)} of {len(left)} trainings could use it{lines}")
        manifest = stored.manifest
        shards = [shard for view in range(manifest.views) for shard in stored.shards.of_view(view)]
        _reserve(out, name, sum(map(stored.shards.bytes_of, shards)))

    if len(left) < enough:
        raise UhkdError(f"only {len(left)} of {len(served)} trainings are left to use it")
    stored = cache(build(CacheRecipe, {**options, "out": str(folder)}), admit=admit)
    if missing := stored.shards.missing(stored.manifest.views):
        raise UhkdError(f"{pluralize(len(missing), 'shard is', 'shards are')} being made by somebody else")
    with _notes(out) as notes:
        notes[name]["seconds"] = time.monotonic() - began if fresh else None
    write_atomically(folder / _COMPLETE, "")


def stored_in(out: Path) -> dict[str, dict[str, Any]]:
    """What is known of a comparison's caches by name, also of those that were deleted: bytes, seconds (None: in parts)."""
    file = out / "caches.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _may_use(run: RunFolder, cache: Path) -> bool:
    """Whether a training is not done, and did not begin without this cache."""
    if run.result.is_file():
        return False
    return not run.started() or Path(run.read_recipe().get("teacher_cache") or "").name == cache.name


@contextlib.contextmanager
def _notes(out: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """caches.json, to be changed by one process at a time."""
    (out / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(out / "locks" / "caches.lock"):
        notes = stored_in(out)
        yield notes
        RunFolder(out).write_json("caches.json", notes)


def _reserve(out: Path, name: str, size: int) -> None:
    """Note what a cache will take, so that caches begun at the same time know of each other.

    Raises:
        UhkdError: when all together would take more than half of what is free without them.
    """
    with _notes(out) as notes:
        others = sum(note["bytes"] for n, note in notes.items() if n != name and (out / n).is_dir())
        written = sum(file.stat().st_size for file in (out / "caches").rglob("*.bin"))
        free = shutil.disk_usage(out).free + written
        if others + size > free / 2:
            next_to = f" beside {others / 1e9:.3g} GB of other caches" if others else ""
            raise UhkdError(
                f"its {size / 1e9:.3g} GB{next_to} are more than half of the free disk ({free / 1e9:.3g} GB without them)"
            )
        notes[name] = {"bytes": size, "seconds": None}
