"""Batch size and epochs of comparisons whose recipes leave them open: chosen once, equal for all methods, part of the plan."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from uhkd.recipe import DataOptions, DistillRecipe, build
from uhkd.training.defaults import LENGTH, choose_length
from uhkd.training.inputs import open_recipe_data

_USED = {*DataOptions.model_fields, *LENGTH, "grad_accum_steps", "schedule", "step_epochs"}


def stated_length(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return batch size, epochs and warm-up for the options of a training that leave batch size or epochs open, else {}.

    Raises:
        UhkdError: the options are invalid, or their data cannot be opened.
    """
    recipe = build(DistillRecipe, options)
    if recipe.batch_size is not None and recipe.epochs is not None:
        return {}
    return dict(_length(recipe.model_dump_json(include=_USED)))


@lru_cache
def _length(fields: str) -> tuple[tuple[str, Any], ...]:
    recipe = build(DistillRecipe, {"student": "any", "method": "scratch", **json.loads(fields)})
    recipe = choose_length(recipe, len(open_recipe_data(recipe).train))
    return tuple((name, getattr(recipe, name)) for name in LENGTH)
