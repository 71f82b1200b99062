"""`cache`: one pass of the teacher over views of the training images, stored for many students."""

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
from uhkd.commands.children import end_with_parent, start_child
from uhkd.commands.objects import merged, take_objects
from uhkd.commands.recording import hold, write_shards
from uhkd.commands.storing import check_disk_space, record_format
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
    """Store logits, embedding and FTM spectra of `views` views of every training image; `distill` then needs no teacher.

    Interrupted and started again it resumes, shard by shard; the same command beside it adds a process; only shards that are
    missing or damaged are written anew; more `views` are added to those that are there.

    Args:
        recipe: a whole recipe; options given beside it take precedence.
        admit: called with the cache when its sizes are known and before its records are written; may raise a ValueError.
        options: fields of the recipe by name (see `uhkd.recipe.CacheRecipe`). `teacher` may also be a `torch.nn.Module`, `data`
            a map-style `Dataset` of (image, label) or a pair of them (training, validation).

    Raises:
        UhkdError: for a teacher or data that cannot be used, a folder that holds something else or another cache
            (differing fields named), folders in it that are links, or too little room on the disk.
    """
    objects = take_objects(options, ("teacher", "data"))
    recipe = build(CacheRecipe, merged(recipe, options))
    folder = Path(recipe.out)
    if recipe.jobs > 1 and objects:
        raise UhkdError("jobs: other processes cannot be given objects; name teacher and data by words, or use jobs=1")
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_own(folder, "locks", *(view.name for view in folder.glob("view-*")))
    work = CacheWriter(recipe, objects.get("teacher"), objects.get("data"))
    if admit is not None:
        admit(work.stored)
    work.announce()
    own = torch.get_num_threads()
    share = own if recipe.jobs == 1 else max(1, usable_cores() // recipe.jobs)
    order = json.dumps({"recipe": recipe.model_copy(update={"jobs": 1}).model_dump(mode="json"), "threads": share})
    children = [start_child(__name__, order) for _ in range(recipe.jobs - 1)]
    try:
        torch.set_num_threads(share)
        work.write()
        ended = [child.wait() for child in children]
    finally:
        torch.set_num_threads(own)
        for child in children:
            child.terminate()
            child.communicate()
    left = work.stored.shards.missing(work.recipe.views)
    if left and any(ended):
        ones = pluralize(len(left), "shard was", "shards were")
        raise UhkdError(f"{ones} not written: a process ended early; the same command goes on")
    if left:
        log_info(f"{pluralize(len(left), 'shard is', 'shards are')} still being written by other processes")
    else:
        print_result(
            f"{folder} is complete: use it with uhkd distill --teacher-cache {folder}, check it with uhkd cache verify {folder}"
        )
    return TeacherCache(folder)  # opened anew: files that were mended have others behind their names


def check_folder(folder: Path) -> None:
    """See that a cache can be made or gone on with in a folder.

    Raises:
        UhkdError: when it cannot be a folder, or holds something else.
    """
    check_place(folder)
    if folder.exists() and not TeacherCache.exists(folder) and _foreign(folder):
        raise UhkdError(f"{folder} already exists and holds no cache; please choose another --out")


def _foreign(folder: Path) -> bool:
    """Whether anything but the beginnings of a cache lies there."""
    own = {"locks", "teacher_probe.safetensors", "recipe.yaml", "environment.json", "teacher.safetensors"}
    if any(item.name not in own and not item.name.endswith(".tmp") for item in folder.iterdir()):
        return True
    run = RunFolder(folder)
    return run.started() and "storage" not in run.read_recipe()  # a training that was begun


class CacheWriter:
    """One process at work on a cache."""

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
            # what an earlier try may have left when it was killed, perhaps by other words
            for leftover in (*self.folder.glob(".*.tmp"), *(() if exists else (self.run.probe, self.run.recipe))):
                leftover.unlink(missing_ok=True)
            self.inputs = Inputs(data=self.data, fabric=self.fabric, folder=self.run, workers=self.workers)
            network, evaluation = prepare_teacher(recipe, self.inputs, module, skip_evaluation=exists)
            save_probe(network, self.run)
            if exists:
                self.stored = TeacherCache(self.folder)
                self.augmentation = self.stored.manifest.augmentation
                self.teacher = self._go_on(network)
            else:
                self.augmentation = choose_augmentation(recipe, self.data, [network])
                log_augmentation(self.augmentation)
                self.teacher = self._begin(network, evaluation.metrics if evaluation else {})
                self.stored = TeacherCache(self.folder)

    def _identity(
        self, network: FeatureExtractor, layout: RecordFormat, teacher: Teacher, augmentation: Augmentation
    ) -> dict[str, Any]:
        return identity_of(
            teacher=fingerprint(network),
            weights=fingerprint(network.module),
            reading={
                "mean": network.mean,
                "std": network.std,
                "interpolation": network.interpolation,
                "input size": network.input_size,
                "options": self.recipe.teacher_options,
            },
            precision=self.precision,
            data=self.data.fingerprint,
            augmentation=augmentation,
            seed=self.recipe.seed,
            classes=len(self.data.classes),
            layout=layout,
            levels=network.levels,
            target=teacher.ftm and teacher.ftm.target,
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
        shown = reference(network, images.to(self.fabric.device), self.fabric.autocast, teacher.ftm)
        tensors: dict[str, Tensor] = {f"reference.{name}": value for name, value in shown.tensors().items()}
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

    def _go_on(self, network: FeatureExtractor) -> Teacher:
        """The teacher with the stored statistics, if everything is as it was when the cache was begun."""
        manifest = self.stored.manifest
        layout, target = record_format(self.recipe, network)
        teacher = Teacher(network, target, self.fabric.autocast)
        identity = self._identity(network, layout, teacher, choose_augmentation(self.recipe, self.data, [network]))
        # taken from the cache: made anew on another machine it would differ in its last digits
        del identity["standardisation"]
        if differing := self.stored.differences(identity):
            raise UhkdError(
                f"{self.folder} was begun by another recipe; choose another --out, or say what it says "
                f"(-c {self.folder}):\n  " + "\n  ".join(differing)
            )
        if teacher.ftm is not None:
            teacher.ftm.load_state_dict(self.stored.tensors("ftm."))
        check_views(self.stored, self.data, manifest.views, damaged_too=False)  # those are made anew
        if self.recipe.views > manifest.views:
            check_disk_space(self.folder, self.stored.shards, layout, self.recipe.views)
            log_info(f"{self.recipe.views - manifest.views} views are added to {manifest.views}")
            write_manifest(self.folder, replace(manifest, views=self.recipe.views))
            self.stored = TeacherCache(self.folder)
        else:  # views that were added later are not in the folder's recipe, and are to be mended as well
            self.recipe = self.recipe.model_copy(update={"views": manifest.views})
        return teacher

    def announce(self) -> None:
        """Remove damaged shards that nobody is making, and tell what is to come.

        Raises:
            UhkdError: when it does not fit on the disk.
        """
        shards = self.stored.shards
        for shard in (shard for view in range(self.recipe.views) for shard in shards.of_view(view)):
            if not shards.is_complete(shard):
                continue
            try:
                shards.check(shard)
            except CorruptShard as error:
                with contextlib.suppress(Timeout), hold(self.folder, shard.name, timeout=0):
                    log_info(f"{str(error).split('; make')[0]}: made anew")
                    (self.folder / shard.name).unlink(missing_ok=True)
        log_info(check_disk_space(self.folder, shards, self.stored.manifest.layout, self.recipe.views))

    def write(self) -> None:
        """Make every shard that is missing and that nobody else is making."""
        loaded = {"batch_size": self.recipe.batch_size, "workers": self.workers, "device": self.fabric.device}
        write_shards(self.stored, self.teacher, self.data, self.recipe.views, **loaded)


def main() -> None:
    """A process beside the first: its recipe is on its command line."""
    order = json.loads(sys.argv[1])
    end_with_parent()
    torch.set_num_threads(order["threads"])
    try:
        CacheWriter(build(CacheRecipe, order["recipe"]), None, None).write()
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches the whole group; the parent tells about it
    except ValueError as error:
        log_info(f"a process beside the first has ended: {error}")
        sys.exit(1)
