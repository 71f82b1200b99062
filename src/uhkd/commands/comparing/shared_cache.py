"""Creation and use of the caches of a comparison; a training uses one only if that does not change its data."""

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
from uhkd.commands.cache import cache
from uhkd.console import log_info, pluralize
from uhkd.errors import UhkdError
from uhkd.methods import DistillationLoss
from uhkd.recipe import CacheRecipe, DistillRecipe, build
from uhkd.runs import RunFolder, write_atomically
from uhkd.runs.disk import free_bytes
from uhkd.training.cached_teacher import check_needs, target_differences
from uhkd.training.geometry import same_shape
from uhkd.training.inputs import Inputs, choose_augmentation, open_recipe_data
from uhkd.training.machine import make_fabric
from uhkd.training.students import build_student
from uhkd.training.teachers import PreparedTeacher, distillers_of

_COMPLETE = "whole"  # file in the folder of a complete cache; checking every shard each time would be slow


def is_complete(folder: Path) -> bool:
    """Return whether a cache is marked as complete."""
    return (folder / _COMPLETE).is_file()


def invalidate(folder: Path, error: Exception) -> None:
    """Mark a cache as incomplete if it caused the error of a training: it is checked and repaired before its next use."""
    if str(folder) in str(error):  # loader processes pass on the message of a `CorruptShard`, not its type
        (folder / _COMPLETE).unlink(missing_ok=True)


def resolve_cache(
    options: Mapping[str, Any], folder: RunFolder, cache: Path | None, failure: str | None
) -> dict[str, Any]:
    """Return the options of a training, with its cache if possible; otherwise log the reason for the live teacher.

    An interrupted training resumes with the source of its first steps, and starts again only if that cache is gone. The folder
    of a comparison may be moved: a cache is identified by its name, which depends on its options, and by its key in the
    checkpoint of the training.

    Args:
        folder: of the training.
        cache: intended for the training.
        failure: reason why that was not created.
    """
    if "teacher_cache" in options:  # set by the user
        return dict(options)
    if folder.started():
        first_cache = folder.read_recipe().get("teacher_cache")
        if first_cache is None:
            return dict(options)
        moved = [] if cache is None or cache.name != Path(first_cache).name else [cache]
        for path in (*moved, Path(first_cache)):
            if is_complete(path):
                return {**options, "teacher_cache": str(path)}
        log_info(f"the cache of this training, {first_cache}, is gone: it starts again from the first epoch")
        shutil.rmtree(folder.path)
    if cache is None:
        return dict(options)
    try:
        why = failure or f"{cache} was not created"
        if is_complete(cache):
            why = incompatibility(options, TeacherCache(cache))
    except UhkdError as error:
        invalidate(cache, error)
        why = str(error)
    if why is None:
        return {**options, "teacher_cache": str(cache)}
    log_info(f"running with the live teacher instead of its cache: {why}")
    return dict(options)


def incompatibility(options: Mapping[str, Any], stored: TeacherCache) -> str | None:
    """Return why a cache would change the data or targets of a training, or None if it would not."""
    manifest, recipe = stored.manifest, build(DistillRecipe, options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the training logs the same again
            data = open_recipe_data(recipe)
            inputs = Inputs(
                data=data, fabric=make_fabric("cpu", "fp32"), folder=RunFolder(stored.folder), workers=0, dry_run=True
            )
            student = build_student(recipe, inputs, None, len(data.classes))
            live = choose_augmentation(recipe, data, [student])
            teacher = PreparedTeacher(recipe, stored, recipe.weights, share=1.0, facts={})
            distillers = distillers_of([teacher], student, len(data.classes), data)
        for name, loss in distillers.items():
            assert isinstance(loss, DistillationLoss)
            check_needs(name, loss.needs, stored)
            target = loss.needs.target
            if target is not None and (differing := target_differences(target, manifest.target)):
                return f"{name} needs other spectra: {'; '.join(differing)}"
    except UhkdError as error:  # a fault of the training itself is reported when it runs
        return str(error)
    if not same_shape(live, manifest.augmentation):
        return f"its views of {manifest.size[0]}x{manifest.size[1]} have another shape than the student's input"
    # the views have the larger size of student and teacher, at most that of the images; the stored size is the teacher's
    height, width = (max(pair) for pair in zip(live.size, manifest.size, strict=True))
    needed, present = asdict(replace(live, size=(height, width))), asdict(manifest.augmentation)
    differing = [f"{name} {needed[name]}, stored {present[name]}" for name in needed if needed[name] != present[name]]
    return f"its views differ: {'; '.join(differing)}" if differing else None


def create_cache(out: Path, name: str, options: Mapping[str, Any], served: Mapping[str, Mapping[str, Any]]) -> None:
    """Create or resume a cache of a comparison.

    Args:
        out: folder of the comparison.
        name: of the cache.
        served: options of the trainings for which it is intended, by name.

    Raises:
        UhkdError: fewer than two trainings would use it, or all caches together need more than half of the free disk.
    """
    folder, is_new, began = out / name, not TeacherCache.exists(out / name), time.monotonic()
    left = {n: options for n, options in served.items() if _may_use(RunFolder(out / n), folder)}
    enough = 1 if any(RunFolder(out / n).started() for n in left) else 2  # an interrupted one cannot resume without it

    def admit(stored: TeacherCache) -> None:
        reasons = {n: why for n, opts in left.items() if (why := incompatibility(opts, stored)) is not None}
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
        raise UhkdError(f"{pluralize(len(missing), 'shard is', 'shards are')} still being written by other processes")
    with _usage(out) as usage:
        usage[name]["seconds"] = time.monotonic() - began if is_new else None
    write_atomically(folder / _COMPLETE, "")


def cache_usage(out: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and seconds (None: created in parts) of the caches of a comparison by name, deleted ones included."""
    file = out / "caches.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _may_use(run: RunFolder, cache: Path) -> bool:
    """Return whether a training is not done and did not start without this cache."""
    if run.result.is_file():
        return False
    return not run.started() or Path(run.read_recipe().get("teacher_cache") or "").name == cache.name


@contextlib.contextmanager
def _usage(out: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Lock caches.json, yield its content, and write the changed content."""
    (out / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(out / "locks" / "caches.lock"):
        usage = cache_usage(out)
        yield usage
        RunFolder(out).write_json("caches.json", usage)


def _reserve(out: Path, name: str, size: int) -> None:
    """Record the size of a cache before it is written, so that caches created at the same time count each other.

    Raises:
        UhkdError: all together need more than half of the disk that is free without them.
    """
    with _usage(out) as usage:
        others = sum(cache["bytes"] for n, cache in usage.items() if n != name and (out / n).is_dir())
        written = sum(file.stat().st_size for file in (out / "caches").rglob("*.bin"))
        free = free_bytes(out) + written
        if others + size > free / 2:
            together = f" and {others / 1e9:.3g} GB of other caches" if others else ""
            raise UhkdError(
                f"its {size / 1e9:.3g} GB{together} are more than half of the free disk ({free / 1e9:.3g} GB without them)"
            )
        usage[name] = {"bytes": size, "seconds": None}
