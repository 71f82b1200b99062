"""Schedules of the learning rate and of the balance as pure functions of the step, so that resuming needs no state."""

import math
from collections.abc import Sequence
from typing import Literal

from uhkd.recipe import TrainRecipe

Schedule = Literal["cosine", "step", "constant"]


def lr_factor(
    step: int,
    total: int,
    *,
    schedule: Schedule = "cosine",
    warmup: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    first: float | None = None,
    floor: float = 0.0,
) -> float:
    """Return the factor on the base learning rate at a step, 0 <= step < total.

    Linear warm-up over `warmup` steps, from `first` to just below 1, or without `first` from 1/warmup to 1. Then, by `schedule`,
    half a cosine from 1 to `floor` (reached just after the last step), or `gamma` per milestone passed, or 1.

    timm's scripts differ: they set the rate once per epoch, and the first W of T epochs of their cosine are replaced by warm-up,
    so that it starts at (1 + cos(pi W / T)) / 2, not at 1.
    """
    if step < warmup:
        return (step + 1) / warmup if first is None else first + (1 - first) * step / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return gamma ** sum(step >= m for m in milestones)
    return floor + (1 - floor) * ((1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2)


def learning_rate(recipe: TrainRecipe, step: int, per_epoch: int) -> float:
    """Return the learning rate of a recipe at a step; per_epoch: steps per epoch."""
    base = recipe.learning_rate
    return base * lr_factor(
        step,
        per_epoch * recipe.epochs,
        schedule=recipe.schedule,
        warmup=round(recipe.warmup_epochs * per_epoch),
        milestones=[epoch * per_epoch for epoch in recipe.step_epochs],
        gamma=recipe.step_gamma,
        first=None if recipe.warmup_lr is None else recipe.warmup_lr / base,
        floor=recipe.min_lr / base,
    )


def weights_factor(step: int, total: int, schedule: str) -> float:
    """Return the factor on the weights of a method's terms: 1 for "constant", from 1 to 0 for "linear" and "cosine"."""
    if schedule == "linear":
        return 1 - step / total
    return (1 + math.cos(math.pi * step / total)) / 2 if schedule == "cosine" else 1.0
