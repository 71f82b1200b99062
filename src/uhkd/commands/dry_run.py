"""`--dry-run`: prepare and check a command and print its plan, without writing, training or downloading."""

from pathlib import Path
from typing import Any

from uhkd import export as forms
from uhkd.cache import Shards, TeacherCache
from uhkd.commands.cache import check_folder
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.progress import states
from uhkd.commands.comparing.task_store import TaskStore
from uhkd.commands.demo import comparison, new_folder
from uhkd.commands.export import check_comparable, check_forms, export_folder
from uhkd.commands.plan_table import describe, describe_data, disk, print_plan
from uhkd.data import Columns, DataSplits, steps_per_epoch
from uhkd.recipe import CacheRecipe, CompareRecipe, DistillRecipe, FinetuneRecipe, TrainRecipe, build
from uhkd.recipe.arguments import DemoArguments, ExportArguments
from uhkd.runs import RunFolder, check_place
from uhkd.training.cache_writer import cache_inputs, check_disk_space, record_format_of
from uhkd.training.defaults import choose_length
from uhkd.training.fit import count_parameters
from uhkd.training.inputs import Inputs, choose_augmentation, log_augmentation, open_recipe_data
from uhkd.training.load_teacher import prepare_teacher
from uhkd.training.machine import make_fabric
from uhkd.training.run_evaluation import images_of, open_run
from uhkd.training.setup import Setup, prepare
from uhkd.training.students import build_student

_COPIES = {"adamw": 2, "lamb": 2, "sgd": 1}  # values per weight in the state of an optimizer
_RUN_FILES = 5_000_000  # bytes of metrics, diagnostics and plots of a short run


def plan_training(recipe: FinetuneRecipe | DistillRecipe) -> dict[str, Any]:
    """Print and return the plan of `finetune` or `distill`: resolved recipe, machine, networks, steps, disk.

    Raises:
        UhkdError: as the command before its first step, except for a teacher at chance level, which only an evaluation shows.
    """
    setup = prepare(recipe, dry_run=True)
    recipe, learner, folder = setup.recipe, setup.learner, setup.folder  # pyright: ignore[reportAssignmentType]
    extra = count_parameters(learner.distillers)
    steps = steps_per_epoch(len(setup.data.train), recipe.batch_size)
    report = {"student" if isinstance(recipe, DistillRecipe) else "model": describe(learner.student)}
    report |= _teachers(setup, extra)
    report |= {
        "out": str(folder.path),
        "device": setup.fabric.device.type,
        "precision": recipe.precision,
        "workers": setup.workers,
        "data": describe_data(setup.data),
        "image_size": list(setup.augmentation.size),
        "batch_size": recipe.batch_size,
        "steps_per_epoch": steps,
        "steps": steps * recipe.epochs,
        "images_seen": steps * recipe.epochs * recipe.batch_size,
        "disk": disk(folder.path, training_bytes(count_parameters(learner.student.module), extra, recipe)),
        "recipe": recipe.model_dump(mode="json"),
    }
    return print_plan("resume" if recipe.resume and folder.started() else "train", report)


def plan_cache(recipe: CacheRecipe) -> dict[str, Any]:
    """Print and return the plan of `cache`: teacher, fields, records, shards to write, disk.

    Raises:
        UhkdError: as `plan_training`, and if the disk is too small.
    """
    folder = Path(recipe.out)
    check_folder(folder)
    inputs, precision = cache_inputs(recipe, dry_run=True)
    teacher, _ = prepare_teacher(recipe, inputs)
    record_format, _ = record_format_of(recipe, teacher)
    data = inputs.data
    augmentation = choose_augmentation(recipe, data, [teacher])
    log_augmentation(augmentation, data, [teacher])
    exists = TeacherCache.exists(folder)
    shards = TeacherCache(folder).shards if exists else Shards(folder, len(data.train), record_format.size, "")
    room = check_disk_space(folder, shards, record_format, recipe.views)
    missing = shards.missing(recipe.views)
    report = {
        "teacher": describe(teacher),
        "out": str(folder),
        "device": inputs.fabric.device.type,
        "precision": precision,
        "data": describe_data(data),
        "views": recipe.views,
        "fields": list(record_format.holds),
        "bytes_a_record": record_format.size,
        "records": recipe.views * len(data.train),
        "shards_to_write": len(missing),
        "room": room,
        "disk": disk(folder, sum(map(shards.bytes_of, missing))),
        "recipe": recipe.model_dump(mode="json"),
    }
    return print_plan("resume a cache" if exists else "store", report)


def plan_compare(recipe: CompareRecipe) -> dict[str, Any]:
    """Print and return the plan of `compare`: tasks, how many are done, steps, disk.

    Raises:
        UhkdError: a recipe is invalid, or data cannot be opened.
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
        return print_plan("measure a step of each method", report)
    return print_plan("compare", report | _trainings(plan, out))


def plan_demo(recipe: DemoArguments) -> dict[str, Any]:
    """Print and return the plan of `demo`.

    Raises:
        UhkdError: as `plan_compare`.
    """
    return plan_compare(build(CompareRecipe, comparison(recipe, new_folder(Path(recipe.out)))))


def plan_export(recipe: ExportArguments) -> dict[str, Any]:
    """Print and return the plan of `export`: files, and the images to compare outputs on.

    Raises:
        UhkdError: as `export` before it writes.
    """
    network, _ = open_run(recipe.run, "cpu")
    data, part, source = images_of(recipe.run, network, recipe.data, options=recipe)
    check_comparable(recipe.to, data, part, source)
    out = export_folder(recipe)
    forms.apply_temperature(network, raw=recipe.raw_logits)
    check_forms(recipe.to, network, recipe)
    report = {
        "network": describe(network),
        "forms": {form: str(out / form) for form in recipe.to},
        "checked_on": f"{min(recipe.images, len(source))} {part} images of {data.name}",
        "disk": disk(out, 4 * count_parameters(network.module) * len(recipe.to)),
    }
    return print_plan("export", report)


def training_bytes(parameters: int, extra: int, recipe: TrainRecipe) -> int:
    """Estimate the largest size of a run in bytes, when a second checkpoint is about to replace the first.

    parameters: of the student. extra: of the layers of the method. Weights are stored in float32.
    """
    averaged, best = (parameters * used for used in (recipe.ema_decay is not None, recipe.keep == "best"))
    checkpoint = 4 * ((parameters + extra) * (1 + _COPIES[recipe.optimizer]) + averaged + best)
    return int(2 * checkpoint + 4 * (parameters + best) + _RUN_FILES)  # the best weights beside those of the last epoch


def _teachers(setup: Setup, extra: int) -> dict[str, Any]:
    """Describe the teachers and the method; empty without a teacher."""
    sources = [teacher.source for teacher in setup.teachers if teacher.source is not None]
    if not sources:
        return {}
    described = [source.to_json() if isinstance(source, TeacherCache) else describe(source) for source in sources]
    methods = dict.fromkeys(teacher.recipe.method for teacher in setup.teachers)
    teachers = {"teacher": described[0]} if len(described) == 1 else {"teachers": described}
    return teachers | {"method": {"name": " and ".join(methods), "extra_parameters": extra}}


def _trainings(plan: Plan, out: Path) -> dict[str, Any]:
    """Return steps, data and disk of all trainings of a plan; each data set and each network is opened once."""
    opened: dict[str, DataSplits] = {}
    built: dict[str, int] = {}
    steps, size = 0, 0
    fabric = make_fabric("cpu", "fp32")
    for task in plan.tasks:
        recipe = build(FinetuneRecipe if "model" in task.options else DistillRecipe, task.options)
        key = str([Columns.of(recipe), recipe.val_fraction, recipe.train_limit, recipe.skip_bad_images])
        data = opened[key] = opened.get(key) or open_recipe_data(recipe)
        recipe = choose_length(recipe, len(data.train))
        steps += recipe.epochs * steps_per_epoch(len(data.train), recipe.batch_size)
        model = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
        options = recipe.student_options if isinstance(recipe, DistillRecipe) else recipe.options
        network = str([model, options, recipe.image_size, len(data.classes)])
        if network not in built:
            inputs = Inputs(data=data, fabric=fabric, folder=RunFolder(out), workers=0, dry_run=True)
            built[network] = count_parameters(build_student(recipe, inputs, None, len(data.classes)).module)
        size += 4 * built[network] + _RUN_FILES  # a finished run has no checkpoint
    return {"steps": steps, "data": [describe_data(data) for data in opened.values()], "disk": disk(out, size)}
