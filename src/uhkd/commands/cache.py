"""`cache`: outputs of a teacher for views of the training images, stored for any number of students."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uhkd.cache import TeacherCache
from uhkd.commands.objects import merged, take_objects
from uhkd.commands.subprocesses import end_with_parent, start_child
from uhkd.console import log_info, pluralize, print_result
from uhkd.data import usable_cores
from uhkd.errors import UhkdError
from uhkd.recipe import CacheRecipe, build
from uhkd.runs import RunFolder, check_own, check_place
from uhkd.training.cache_writer import CacheWriter
from uhkd.training.oom import LARGE_BATCH, memory_advice


@memory_advice(LARGE_BATCH)
def cache(
    recipe: CacheRecipe | None = None, *, admit: Callable[[TeacherCache], None] | None = None, **options: Any
) -> TeacherCache:
    """Store logits, embedding and FTM spectra for `views` views of each training image, so that `distill` needs no teacher.

    The same command resumes an interrupted cache shard by shard, joins a running one with another process, rewrites missing and
    damaged shards only, and adds views if `views` is larger than before.

    Args:
        recipe: a complete recipe; `options` take precedence.
        admit: called with the cache before its records are written; may raise a UhkdError.
        options: fields of the recipe by name (see `uhkd.recipe.CacheRecipe`). `teacher` may also be a `torch.nn.Module`, `data`
            a map-style `Dataset` of (image, label) or a pair of them (training, validation).

    Raises:
        UhkdError: the teacher or the data cannot be used; the folder has other content, another cache (the message names the
            differing fields) or folders that are links; the disk is too small.
    """
    objects = take_objects(options, ("teacher", "data"))
    recipe = build(CacheRecipe, merged(recipe, options))
    folder = Path(recipe.out)
    if recipe.jobs > 1 and objects:
        raise UhkdError(
            "jobs: objects cannot be passed to other processes; give names for teacher and data, or use jobs=1"
        )
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_own(folder, "locks", *(view.name for view in folder.glob("view-*")))
    writer = CacheWriter(recipe, objects.get("teacher"), objects.get("data"))
    if admit is not None:
        admit(writer.stored)
    writer.prepare()
    threads = torch.get_num_threads()
    share = threads if recipe.jobs == 1 else max(1, usable_cores() // recipe.jobs)
    order = json.dumps({"recipe": recipe.model_copy(update={"jobs": 1}).model_dump(mode="json"), "threads": share})
    children = [start_child(__name__, order) for _ in range(recipe.jobs - 1)]
    try:
        torch.set_num_threads(share)
        writer.write()
        exit_codes = [child.wait() for child in children]
    finally:
        torch.set_num_threads(threads)
        for child in children:
            child.terminate()
            child.communicate()
    missing = writer.stored.shards.missing(writer.recipe.views)
    if missing and any(exit_codes):
        shards = pluralize(len(missing), "shard was", "shards were")
        raise UhkdError(f"{shards} not written: a process ended early; the same command resumes the cache")
    if missing:
        log_info(f"{pluralize(len(missing), 'shard is', 'shards are')} still being written by other processes")
    else:
        print_result(
            f"{folder} is complete: use it with uhkd distill --teacher-cache {folder}, check it with uhkd cache verify {folder}"
        )
    return TeacherCache(folder)  # opened again: rewritten shards are new files, the old ones may still be open


def check_folder(folder: Path) -> None:
    """Check that a folder can hold a new cache or holds one.

    Raises:
        UhkdError: the path cannot be a folder, or the folder has other content.
    """
    check_place(folder)
    if folder.exists() and not TeacherCache.exists(folder) and _has_other_content(folder):
        raise UhkdError(f"{folder} already exists and is not a cache; choose another --out")


def _has_other_content(folder: Path) -> bool:
    """Return whether a folder has anything but the first files of a cache."""
    first_files = {"locks", "teacher_probe.safetensors", "recipe.yaml", "environment.json", "teacher.safetensors"}
    if any(item.name not in first_files and not item.name.endswith(".tmp") for item in folder.iterdir()):
        return True
    run = RunFolder(folder)
    return run.started() and "storage" not in run.read_recipe()  # an interrupted training


def main() -> None:
    """Entry point of an additional process; the argument is its order as JSON."""
    order = json.loads(sys.argv[1])
    end_with_parent()
    torch.set_num_threads(order["threads"])
    try:
        with memory_advice(LARGE_BATCH):
            CacheWriter(build(CacheRecipe, order["recipe"]), None, None).write()
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches the whole process group; the parent reports it
    except UhkdError as error:
        log_info(f"an additional process has ended: {error}")
        sys.exit(1)
