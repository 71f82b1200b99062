"""Comparison, demo and export, settled and not begun."""

from pathlib import Path
from typing import Any

from uhkd import export as forms
from uhkd.arguments import DemoArguments, ExportArguments
from uhkd.commands.comparing.live import states
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.queue import Board
from uhkd.commands.demo import comparison, new_folder
from uhkd.commands.exporting import check_judged, place_of
from uhkd.commands.judging import images_of, open_run
from uhkd.commands.planning.networks import student_of
from uhkd.commands.planning.settled import described, described_data, disk, parameters_of, shown_plan
from uhkd.commands.planning.single import BESIDE
from uhkd.data import Data, steps_per_epoch
from uhkd.recipe import CompareRecipe, DistillRecipe, FinetuneRecipe, build
from uhkd.runs import check_place
from uhkd.training.setup import fit_batch, open_recipe_data


def plan_compare(recipe: CompareRecipe) -> dict[str, Any]:
    """What `compare` would train: tasks, what is done already, steps, disk.

    Raises:
        ValueError: for recipes that cannot work, or data that cannot be opened.
    """
    out = Path(recipe.out).resolve()
    check_place(out)
    plan = make_plan(recipe, out)
    done = states(plan, Board(out))["done"]
    settled: dict[str, Any] = {
        "out": str(out),
        "pairs": dict(plan.teachers),
        "methods": list(recipe.methods),
        "trainings": len(plan.tasks),
        "done": done,
        "teachers_to_train": sum("model" in task.words for task in plan.tasks),
        "cells": len(plan.cells),
        "settings_tried": len(plan.trials),
        "caches": [cache.name for cache in plan.caches],
        "jobs": recipe.jobs,
    }
    if recipe.cost:
        return shown_plan("measure a step of each method", settled)
    return shown_plan("compare", settled | _trainings(plan, out))


def plan_demo(asked: DemoArguments) -> dict[str, Any]:
    """What `demo` would train.

    Raises:
        ValueError: as `plan_compare`.
    """
    return plan_compare(build(CompareRecipe, comparison(asked, new_folder(Path(asked.out)))))


def plan_export(asked: ExportArguments) -> dict[str, Any]:
    """What `export` would write, and on which images it would be checked.

    Raises:
        ValueError: for what `export` refuses before it writes.
    """
    network, _ = open_run(asked.run, "cpu")
    data, part, source = images_of(asked.run, network, asked.data)
    check_judged(asked.to, data, part, source)
    out = place_of(asked)
    for form in asked.to:
        forms.check(form, network)
    settled = {
        "network": described(network),
        "forms": {form: str(out / form) for form in asked.to},
        "checked_on": f"{min(asked.images, len(source))} {part} images of {data.name}",
        "disk": disk(out, 4 * parameters_of(network) * len(asked.to)),
    }
    return shown_plan("export", settled)


def _trainings(plan: Plan, out: Path) -> dict[str, Any]:
    """Steps and disk of all trainings of a plan; each data set is opened once, each student built once."""
    opened: dict[str, Data] = {}
    built: dict[str, int] = {}
    steps, most = 0, 0
    for task in plan.tasks:
        recipe = build(FinetuneRecipe if "model" in task.words else DistillRecipe, task.words)
        key = str([recipe.data, recipe.val_fraction, recipe.train_limit, recipe.skip_bad_images])
        data = opened[key] = opened.get(key) or open_recipe_data(recipe)
        recipe = fit_batch(recipe, data)
        steps += recipe.epochs * steps_per_epoch(len(data.train), recipe.batch_size)
        named = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
        options = recipe.student_options if isinstance(recipe, DistillRecipe) else recipe.options
        network = str([named, options, recipe.image_size, len(data.classes)])
        if network not in built:
            built[network] = parameters_of(student_of(recipe, data, len(data.classes)))
        most += 4 * built[network] + BESIDE  # a finished run keeps no checkpoint
    return {"steps": steps, "data": [described_data(data) for data in opened.values()], "disk": disk(out, most)}
