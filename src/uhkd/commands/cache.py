"""`cache`: outputs of a teacher for views of the training images, stored for any number of students."""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import Tensor, nn

from uhkd.cache import CorruptShard, Manifest, RecordFormat, Shards, TeacherCache, identity_of, write_manifest
from uhkd.commands.cache_shards import hold, write_shards
from uhkd.commands.cache_space import check_disk_space, record_format
from uhkd.commands.objects import merged, take_objects
from uhkd.commands.subprocesses import end_with_parent, start_child
from uhkd.console import log_info, pluralize, print_result
from uhkd.data import Augmentation, eval_loader, usable_cores
from uhkd.errors import UhkdError
from uhkd.evaluation.diagnostics import DIAGNOSTIC_IMAGES, first_images, reference
from uhkd.evaluation.metrics import EVAL_BATCH
from uhkd.features import FeatureExtractor
from uhkd.models import fingerprint
from uhkd.recipe import CacheRecipe, build
from uhkd.runs import RunFolder, check_own, check_place, environment
from uhkd.training import Teacher
from uhkd.training.cache_checks import check_views
from uhkd.training.inputs import Inputs, choose_augmentation, log_augmentation, open_recipe_data
from uhkd.training.load_teacher import calibrate_ftm, prepare_teacher, save_probe
from uhkd.training.machine import choose_device, choose_workers, log_device, make_fabric


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


class CacheWriter:
    """One process that writes a cache."""

    def __init__(self, recipe: CacheRecipe, module: nn.Module | None, data: Any) -> None:
        self.recipe, self.folder = recipe, Path(recipe.out)
        self.run = RunFolder(self.folder)
        device, self.precision = choose_device(recipe)
        self.fabric = make_fabric(device, self.precision, recipe.deterministic)
        log_device(recipe, device, self.precision)
        self.data = open_recipe_data(recipe, data)
        self.workers = choose_workers(recipe, self.data, device)
        exists = TeacherCache.exists(self.folder)
        with hold(self.folder, "begin", timeout=-1):
            exists = exists or TeacherCache.exists(self.folder)
            # files of an interrupted attempt, perhaps with other options
            for leftover in (*self.folder.glob(".*.tmp"), *(() if exists else (self.run.probe, self.run.recipe))):
                leftover.unlink(missing_ok=True)
            self.inputs = Inputs(data=self.data, fabric=self.fabric, folder=self.run, workers=self.workers)
            network, evaluation = prepare_teacher(recipe, self.inputs, module, skip_evaluation=exists)
            save_probe(network, self.run)
            if exists:
                self.stored = TeacherCache(self.folder)
                self.augmentation = self.stored.manifest.augmentation
                self.teacher = self._resume(network)
            else:
                self.augmentation = choose_augmentation(recipe, self.data, [network])
                log_augmentation(self.augmentation)
                self.teacher = self._begin(network, evaluation.metrics if evaluation else {})
                self.stored = TeacherCache(self.folder)

    def _identity(
        self, network: FeatureExtractor, layout: RecordFormat, teacher: Teacher, augmentation: Augmentation
    ) -> dict[str, Any]:
        teacher_facts = {
            "fingerprint": fingerprint(network),
            "weights": fingerprint(network.module),
            "levels": network.levels,
            "mean": network.mean,
            "std": network.std,
            "interpolation": network.interpolation,
            "input size": network.input_size,
            "options": self.recipe.teacher_options,
        }
        return identity_of(
            teacher=teacher_facts,
            precision=self.precision,
            data=self.data.fingerprint,
            classes=len(self.data.classes),
            augmentation=augmentation,
            seed=self.recipe.seed,
            layout=layout,
            ftm=teacher.ftm,
        )

    def _begin(self, network: FeatureExtractor, metrics: dict[str, float]) -> Teacher:
        recipe, data = self.recipe, self.data
        layout, target = record_format(self.recipe, network)
        check_disk_space(self.folder, Shards(self.folder, len(data.train), layout.size, ""), layout, recipe.views)
        teacher = Teacher(network, target, self.fabric.autocast)
        if teacher.ftm is not None:
            calibrate_ftm(teacher, self.inputs, self.augmentation, recipe.seed)
        images = first_images(
            eval_loader(data.val, self.augmentation.size, batch_size=EVAL_BATCH, workers=self.workers),
            DIAGNOSTIC_IMAGES,
        )
        features = reference(network, images.to(self.fabric.device), self.fabric.autocast, teacher.ftm)
        tensors: dict[str, Tensor] = {f"reference.{name}": value for name, value in features.tensors().items()}
        if teacher.ftm is not None:
            tensors |= {f"ftm.{name}": value for name, value in teacher.ftm.state_dict().items()}
        self.run.begin(recipe.model_dump(mode="json"))
        manifest = Manifest(
            identity=self._identity(network, layout, teacher, self.augmentation),
            images=len(data.train),
            views=recipe.views,
            layout=layout,
            augmentation=self.augmentation,
            seed=recipe.seed,
            shapes=network.shapes,
            levels=network.levels,
            target=target,
            teacher=recipe.teacher,
            teacher_metrics=metrics,
            validation=data.validation,
            teacher_options={"teacher_start": recipe.teacher_start, "teacher_head": recipe.teacher_head},
            environment={k: v for k, v in environment().items() if k != "command"} | {"precision": self.precision},
        )
        TeacherCache.begin(self.folder, manifest, tensors, getattr(data.train, "keys", None))
        return teacher

    def _resume(self, network: FeatureExtractor) -> Teacher:
        """Return the teacher with the stored statistics after comparing everything with the existing cache."""
        manifest = self.stored.manifest
        layout, target = record_format(self.recipe, network)
        teacher = Teacher(network, target, self.fabric.autocast)
        identity = self._identity(network, layout, teacher, choose_augmentation(self.recipe, self.data, [network]))
        # read from the cache: computed again on another machine, it would differ in its last digits
        del identity["standardisation"]
        if differing := self.stored.differences(identity):
            raise UhkdError(
                f"{self.folder} is a cache of another recipe; choose another --out, or use its recipe (-c {self.folder}):\n  "
                + "\n  ".join(differing)
            )
        if teacher.ftm is not None:
            teacher.ftm.load_state_dict(self.stored.tensors("ftm."))
        check_views(self.stored, self.data, manifest.views, damaged_too=False)  # damaged shards are written again
        if self.recipe.views > manifest.views:
            check_disk_space(self.folder, self.stored.shards, layout, self.recipe.views)
            log_info(f"{self.recipe.views - manifest.views} views are added to {manifest.views}")
            write_manifest(self.folder, replace(manifest, views=self.recipe.views))
            self.stored = TeacherCache(self.folder)
        else:  # check and repair also the views that were added later, which the recipe in the folder does not count
            self.recipe = self.recipe.model_copy(update={"views": manifest.views})
        return teacher

    def prepare(self) -> None:
        """Remove damaged shards that no process is writing, and log the work to do.

        Raises:
            UhkdError: the disk is too small.
        """
        shards = self.stored.shards
        for shard in (shard for view in range(self.recipe.views) for shard in shards.of_view(view)):
            if not shards.is_complete(shard):
                continue
            try:
                shards.check(shard)
            except CorruptShard as error:
                with contextlib.suppress(Timeout), hold(self.folder, shard.name, timeout=0):
                    log_info(f"{error.problem}; it is written again")
                    (self.folder / shard.name).unlink(missing_ok=True)
        log_info(check_disk_space(self.folder, shards, self.stored.manifest.layout, self.recipe.views))

    def write(self) -> None:
        """Write every missing shard that no other process is writing."""
        options = {"batch_size": self.recipe.batch_size, "workers": self.workers, "device": self.fabric.device}
        write_shards(self.stored, self.teacher, self.data, self.recipe.views, **options)


def main() -> None:
    """Entry point of an additional process; the argument is its order as JSON."""
    order = json.loads(sys.argv[1])
    end_with_parent()
    torch.set_num_threads(order["threads"])
    try:
        CacheWriter(build(CacheRecipe, order["recipe"]), None, None).write()
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches the whole process group; the parent reports it
    except UhkdError as error:
        log_info(f"an additional process has ended: {error}")
        sys.exit(1)
