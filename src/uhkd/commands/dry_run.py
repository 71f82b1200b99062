"""`--dry-run`: assemble and check all that a command needs and print it; nothing is written, trained or fetched."""

from pathlib import Path
from typing import Any

from uhkd import export as forms
from uhkd.cache import Shards, TeacherCache
from uhkd.commands.caching import check_folder
from uhkd.commands.comparing.live import states
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.queue import TaskStore
from uhkd.commands.demo import comparison, new_folder
from uhkd.commands.exporting import check_comparable, export_folder
from uhkd.commands.judging import images_of, open_run
from uhkd.commands.plan_table import described, described_data, disk, existing, parameters_of, shown_plan
from uhkd.commands.storing import check_disk_space, record_format
from uhkd.data import DataSplits, steps_per_epoch
from uhkd.recipe import CacheRecipe, CompareRecipe, DistillRecipe, FinetuneRecipe, TrainRecipe, build
from uhkd.recipe.arguments import DemoArguments, ExportArguments
from uhkd.runs import RunFolder, check_place
from uhkd.training.inputs import Inputs, choose_augmentation, fit_batch, log_augmentation, open_recipe_data
from uhkd.training.load_teacher import prepare_teacher
from uhkd.training.machine import choose_device, log_device, make_fabric
from uhkd.training.setup import Setup, prepare
from uhkd.training.students import build_student

_COPIES = {"adamw": 2, "lamb": 2, "sgd": 1}  # numbers that an optimizer keeps beside each weight
_RUN_FILES = 5_000_000  # bytes of metrics, diagnostics and pictures of a short run


def plan_training(recipe: FinetuneRecipe | DistillRecipe) -> dict[str, Any]:
    """Return what `finetune` or `distill` would do: resolved recipe, machine, networks, steps, disk.

    Raises:
        UhkdError: for what the command itself refuses before its first step, except a teacher at chance level, which is known
            only after an evaluation.
    """
    setup = prepare(recipe, dry_run=True)
    recipe, learner, folder = setup.recipe, setup.learner, setup.folder  # pyright: ignore[reportAssignmentType]
    extra = sum(p.numel() for p in learner.distillers.parameters())
    steps = steps_per_epoch(len(setup.data.train), recipe.batch_size)
    report = {"student" if isinstance(recipe, DistillRecipe) else "model": described(learner.student)}
    report |= _teachers(setup, extra)
    report |= {
        "out": str(folder.path),
        "device": setup.fabric.device.type,
        "precision": recipe.precision,
        "workers": setup.workers,
        "data": described_data(setup.data),
        "image_size": list(setup.augmentation.size),
        "batch_size": recipe.batch_size,
        "steps_per_epoch": steps,
        "steps": steps * recipe.epochs,
        "images_seen": steps * recipe.epochs * recipe.batch_size,
        "disk": disk(folder.path, training_bytes(parameters_of(learner.student), extra, recipe)),
        "recipe": recipe.model_dump(mode="json"),
    }
    return shown_plan("resume" if recipe.resume and folder.started() else "train", report)


def plan_cache(recipe: CacheRecipe) -> dict[str, Any]:
    """Return what `cache` would store: teacher, fields, records, shards to write, disk.

    Raises:
        UhkdError: as `plan_training`, and where the records do not fit on the disk.
    """
    folder = Path(recipe.out)
    check_folder(folder)
    device, precision = choose_device(recipe)
    log_device(recipe, device, precision)
    data = open_recipe_data(recipe)
    inputs = Inputs(data=data, fabric=make_fabric(device, precision), folder=RunFolder(folder), workers=0, dry_run=True)
    teacher, _ = prepare_teacher(recipe, inputs)
    layout, _ = record_format(recipe, teacher)
    augmentation = choose_augmentation(recipe, data, [teacher])
    log_augmentation(augmentation)
    exists = TeacherCache.exists(folder)
    shards = TeacherCache(folder).shards if exists else Shards(folder, len(data.train), layout.size, "")
    error = check_disk_space(existing(folder), shards, layout, recipe.views)
    missing = shards.missing(recipe.views)
    report = {
        "teacher": described(teacher),
        "out": str(folder),
        "device": device,
        "precision": precision,
        "data": described_data(data),
        "views": recipe.views,
        "fields": list(layout.holds),
        "bytes_a_record": layout.size,
        "records": recipe.views * len(data.train),
        "shards_to_write": len(missing),
        "room": error,
        "disk": disk(folder, sum(map(shards.bytes_of, missing))),
        "recipe": recipe.model_dump(mode="json"),
    }
    return shown_plan("go on with a cache" if exists else "store", report)


def plan_compare(recipe: CompareRecipe) -> dict[str, Any]:
    """Return what `compare` would train: tasks, what is done already, steps, disk.

    Raises:
        UhkdError: for recipes that cannot work, or data that cannot be opened.
    """
    out = Path(recipe.out).resolve()
    check_place(out)
    plan = make_plan(recipe, out)
    done = states(plan, TaskStore(out))["done"]
    report: dict[str, Any] = {
        "out": str(out),
        "pairs": dict(plan.teachers),
        "methods": list(recipe.methods),
        "trainings": len(plan.tasks),
        "done": done,
        "teachers_to_train": sum("model" in task.options for task in plan.tasks),
        "cells": len(plan.cells),
        "settings_tried": len(plan.trials),
        "caches": [cache.name for cache in plan.caches],
        "jobs": recipe.jobs,
    }
    if recipe.cost:
        return shown_plan("measure a step of each method", report)
    return shown_plan("compare", report | _trainings(plan, out))


def plan_demo(recipe: DemoArguments) -> dict[str, Any]:
    """Return what `demo` would train.

    Raises:
        UhkdError: as `plan_compare`.
    """
    return plan_compare(build(CompareRecipe, comparison(recipe, new_folder(Path(recipe.out)))))


def plan_export(recipe: ExportArguments) -> dict[str, Any]:
    """Return what `export` would write, and on which images it would be checked.

    Raises:
        UhkdError: for what `export` refuses before it writes.
    """
    network, _ = open_run(recipe.run, "cpu")
    data, part, source = images_of(recipe.run, network, recipe.data)
    check_comparable(recipe.to, data, part, source)
    out = export_folder(recipe)
    for form in recipe.to:
        forms.check(form, network)
    report = {
        "network": described(network),
        "forms": {form: str(out / form) for form in recipe.to},
        "checked_on": f"{min(recipe.images, len(source))} {part} images of {data.name}",
        "disk": disk(out, 4 * parameters_of(network) * len(recipe.to)),
    }
    return shown_plan("export", report)


def training_bytes(parameters: int, extra: int, recipe: TrainRecipe) -> int:
    """Return about how many bytes a run takes on the disk at most: two checkpoints while one replaces the other, and the rest.

    parameters: of the student; extra: of the method's own layers. Weights are kept in float32.
    """
    averaged = parameters if recipe.ema_decay else 0
    checkpoint = 4 * ((parameters + extra) * (1 + _COPIES[recipe.optimizer]) + averaged)
    return int(2 * checkpoint + 4 * parameters + _RUN_FILES)


def _teachers(setup: Setup, extra: int) -> dict[str, Any]:
    """Describe the teachers and the method; empty without a teacher."""
    used = [one.source for one in setup.teachers if one.source is not None]
    if not used:
        return {}
    sources = [source.as_json() if isinstance(source, TeacherCache) else described(source) for source in used]
    methods = dict.fromkeys(one.recipe.method for one in setup.teachers)
    own = {"teacher": sources[0]} if len(sources) == 1 else {"teachers": sources}
    return own | {"method": {"name": " and ".join(methods), "extra_parameters": extra}}


def _trainings(plan: Plan, out: Path) -> dict[str, Any]:
    """Steps and disk of all trainings of a plan; each data set is opened once, each student built once."""
    opened: dict[str, DataSplits] = {}
    built: dict[str, int] = {}
    steps, most = 0, 0
    fabric = make_fabric("cpu", "fp32")
    for task in plan.tasks:
        recipe = build(FinetuneRecipe if "model" in task.options else DistillRecipe, task.options)
        key = str([recipe.data, recipe.val_fraction, recipe.train_limit, recipe.skip_bad_images])
        data = opened[key] = opened.get(key) or open_recipe_data(recipe)
        recipe = fit_batch(recipe, data)
        steps += recipe.epochs * steps_per_epoch(len(data.train), recipe.batch_size)
        named = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
        options = recipe.student_options if isinstance(recipe, DistillRecipe) else recipe.options
        network = str([named, options, recipe.image_size, len(data.classes)])
        if network not in built:
            inputs = Inputs(data=data, fabric=fabric, folder=RunFolder(out), workers=0, dry_run=True)
            built[network] = parameters_of(build_student(recipe, inputs, None, len(data.classes)))
        most += 4 * built[network] + _RUN_FILES  # a finished run keeps no checkpoint
    return {"steps": steps, "data": [described_data(data) for data in opened.values()], "disk": disk(out, most)}
