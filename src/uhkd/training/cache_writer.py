"""Writing of a cache of teacher outputs: its manifest and the statistics of the spectra, then the records shard by shard."""

import contextlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import Timeout
from torch import Tensor, nn

from uhkd.cache import CorruptShard, Manifest, RecordFormat, Shards, TeacherCache, identity_of, write_manifest
from uhkd.console import file_size, log_info
from uhkd.data import Augmentation, eval_loader
from uhkd.errors import UhkdError
from uhkd.evaluation.diagnostics import DIAGNOSTIC_IMAGES, first_images, reference
from uhkd.evaluation.metrics import EVAL_BATCH
from uhkd.features import FeatureExtractor
from uhkd.models import fingerprint
from uhkd.recipe import CacheRecipe
from uhkd.runs import RunFolder, environment
from uhkd.runs.disk import free_bytes
from uhkd.spectral import SpectralTarget, resolve_channels, teacher_levels
from uhkd.training.cache_checks import check_views
from uhkd.training.cache_shards import hold, write_shards
from uhkd.training.inputs import (
    Inputs,
    choose_augmentation,
    log_augmentation,
    open_recipe_data,
    record_split,
    recorded_split,
)
from uhkd.training.load_teacher import calibrate_ftm, prepare_teacher, save_probe
from uhkd.training.machine import choose_device, choose_workers, log_device, make_fabric
from uhkd.training.teacher import Autocast, Teacher


def cache_inputs(recipe: CacheRecipe, data: Any = None, *, dry_run: bool = False) -> tuple[Inputs, str]:
    """Return the inputs with which the teacher of a cache is prepared, and the precision with "auto" resolved.

    data: in place of the recipe's name.

    Raises:
        UhkdError: for a device that is absent, or data that cannot be opened.
    """
    device, precision = choose_device(recipe)
    fabric = make_fabric(device, precision, recipe.deterministic)
    log_device(recipe, device, precision)
    opened = open_recipe_data(recipe, data)
    workers = choose_workers(recipe, opened, device)
    return Inputs(data=opened, fabric=fabric, folder=RunFolder(recipe.out), workers=workers, dry_run=dry_run), precision


def record_format_of(
    recipe: CacheRecipe, network: FeatureExtractor, autocast: Autocast = nullcontext
) -> tuple[RecordFormat, Teacher]:
    """Return the format of the records of a teacher, and the teacher with the spectra to store, if any, not yet calibrated.

    Raises:
        UhkdError: the teacher lacks a requested field, or there is nothing to store.
    """
    shapes, target = network.shapes, None
    for field, size in (("logits", shapes.logits), ("embedding", shapes.embedding), ("spectra", shapes.maps)):
        if field in recipe.keep and not size:
            if "keep" in recipe.model_fields_set:
                raise UhkdError(
                    f"keep: the teacher has no {'feature maps for spectra' if field == 'spectra' else field}"
                )
            log_info(f"  the teacher has no {field}: not stored")
    if "spectra" in recipe.keep and shapes.maps:
        levels = teacher_levels(shapes.maps, recipe.radius, recipe.form)
        target = SpectralTarget(levels, recipe.standardise, resolve_channels(recipe.channels, recipe.form))
    teacher = Teacher(network, target, autocast)
    available = {"logits": shapes.logits, "embedding": shapes.embedding}
    sizes = {name: size if name in recipe.keep else None for name, size in available.items()}
    spectra = () if teacher.ftm is None else teacher.ftm.shapes
    record_format = RecordFormat(**sizes, spectra=spectra, storage=recipe.storage)
    if not record_format.holds:
        raise UhkdError(f"nothing to store: the teacher has none of {', '.join(recipe.keep)}")
    return record_format, teacher


def check_disk_space(folder: Path, shards: Shards, record_format: RecordFormat, views: int) -> str:
    """Describe the size of a cache and the bytes still to write.

    Raises:
        UhkdError: the disk is too small.
    """
    total = sum(shards.bytes_of(shard) for view in range(views) for shard in shards.of_view(view))
    todo = sum(map(shards.bytes_of, shards.missing(views)))
    free = free_bytes(folder)
    if todo > free:
        raise UhkdError(
            f"{folder} has {file_size(free)} free, but {file_size(todo)} must be written; use fewer --views, "
            "--storage int8, fewer fields in --keep, fewer --channels, or another --out"
        )
    return (
        f"{shards.images:,} images x {views} views, {record_format.size:,} bytes each ({', '.join(record_format.holds)}, "
        f"{record_format.storage}): {file_size(total)} in total, {file_size(todo)} to write, {file_size(free)} free"
    )


class CacheWriter:
    """One process that writes a cache."""

    def __init__(self, recipe: CacheRecipe, module: nn.Module | None, data: Any) -> None:
        self.folder, self.run = Path(recipe.out), RunFolder(recipe.out)
        exists = TeacherCache.exists(self.folder)
        if exists and recipe.val_fraction is None:
            recipe = recipe.model_copy(update={"val_fraction": recorded_split(self.run)})
        self.inputs, self.precision = cache_inputs(recipe, data)
        self.recipe = recipe = record_split(recipe, self.inputs.data)
        self.data, self.fabric, self.workers = self.inputs.data, self.inputs.fabric, self.inputs.workers
        with hold(self.folder, "begin", timeout=-1):
            exists = exists or TeacherCache.exists(self.folder)
            # files of an interrupted attempt, perhaps with other options
            for leftover in (*self.folder.glob(".*.tmp"), *(() if exists else (self.run.probe, self.run.recipe))):
                leftover.unlink(missing_ok=True)
            network, evaluation = prepare_teacher(recipe, self.inputs, module, skip_evaluation=exists)
            save_probe(network, self.run)
            if exists:
                self.stored = TeacherCache(self.folder)
                self.augmentation = self.stored.manifest.augmentation
                self.teacher = self._resume(network)
            else:
                self.augmentation = choose_augmentation(recipe, self.data, [network])
                log_augmentation(self.augmentation, self.data, [network])
                self.teacher = self._begin(network, evaluation.metrics if evaluation else {})
                self.stored = TeacherCache(self.folder)

    def _identity(
        self, network: FeatureExtractor, record_format: RecordFormat, teacher: Teacher, augmentation: Augmentation
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
            record_format=record_format,
            ftm=teacher.ftm,
        )

    def _begin(self, network: FeatureExtractor, metrics: dict[str, float]) -> Teacher:
        recipe, data = self.recipe, self.data
        record_format, teacher = record_format_of(recipe, network, self.fabric.autocast)
        shards = Shards(self.folder, len(data.train), record_format.size, "")
        check_disk_space(self.folder, shards, record_format, recipe.views)
        if teacher.ftm is not None:
            calibrate_ftm(teacher, self.inputs, self.augmentation, recipe.seed)
        images = first_images(
            eval_loader(
                data.val, self.augmentation.size, batch_size=EVAL_BATCH, workers=self.workers, resize=data.resize
            ),
            DIAGNOSTIC_IMAGES,
        )
        features = reference(network, images.to(self.fabric.device), self.fabric.autocast, teacher.ftm)
        tensors: dict[str, Tensor] = {f"reference.{name}": value for name, value in features.tensors().items()}
        if teacher.ftm is not None:
            tensors |= {f"ftm.{name}": value for name, value in teacher.ftm.state_dict().items()}
        self.run.begin(recipe.model_dump(mode="json"))
        manifest = Manifest(
            identity=self._identity(network, record_format, teacher, self.augmentation),
            images=len(data.train),
            views=recipe.views,
            record_format=record_format,
            augmentation=self.augmentation,
            seed=recipe.seed,
            shapes=network.shapes,
            levels=network.levels,
            target=None if teacher.ftm is None else teacher.ftm.target,
            teacher=recipe.teacher,
            teacher_metrics=metrics,
            validation=data.validation,
            teacher_options={k: getattr(recipe, k) for k in ("teacher_start", "teacher_weights_key", "teacher_head")},
            environment={k: v for k, v in environment().items() if k != "command"} | {"precision": self.precision},
        )
        TeacherCache.create(self.folder, manifest, tensors, getattr(data.train, "keys", None))
        return teacher

    def _resume(self, network: FeatureExtractor) -> Teacher:
        """Return the teacher with the stored statistics after comparing everything with the existing cache."""
        manifest = self.stored.manifest
        record_format, teacher = record_format_of(self.recipe, network, self.fabric.autocast)
        identity = self._identity(
            network, record_format, teacher, choose_augmentation(self.recipe, self.data, [network])
        )
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
            check_disk_space(self.folder, self.stored.shards, record_format, self.recipe.views)
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
        log_info(check_disk_space(self.folder, shards, self.stored.manifest.record_format, self.recipe.views))

    def write(self) -> None:
        """Write every missing shard that no other process is writing."""
        options = {"batch_size": self.recipe.batch_size, "workers": self.workers, "device": self.fabric.device}
        write_shards(self.stored, self.teacher, self.data, self.recipe.views, **options)
