"""The optimizer of a recipe."""

from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from uhkd.recipe import TrainRecipe

FUSED = ("adamw", "sgd")
"""Optimizers with a fused implementation in torch, which is much faster on CPUs as well (docs/performance.md)."""


def make_optimizer(module: nn.Module, recipe: TrainRecipe) -> Optimizer:
    """Return timm's optimizer of the recipe; biases, norms and what the architecture exempts have no weight decay."""
    kwargs: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "weight_decay": recipe.effective_weight_decay,
        "momentum": recipe.momentum,
    }
    if recipe.optimizer in FUSED:
        kwargs["fused"] = True
    if recipe.optimizer == "lamb":
        # `TrainStep` clips student and distillers separately; lamb would clip them together, and the layers of a method would
        # then shrink the step of the student
        kwargs["max_grad_norm"] = None
    return create_optimizer_v2(module, opt=recipe.optimizer, **kwargs)
