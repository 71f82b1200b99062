"""The recipe's optimiser over a learner's parameters."""

from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from uhkd.recipe import TrainRecipe

FUSED = ("adamw", "sgd")
"""Optimisers of torch with one pass over all parameters: a fraction of the usual time on a CPU as well (docs/performance.md)."""


def make_optimizer(learner: nn.Module, recipe: TrainRecipe) -> Optimizer:
    """timm's optimiser by the recipe's name, without decay for biases, norms and what the architecture exempts."""
    own: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "weight_decay": recipe.effective_weight_decay,
        "momentum": recipe.momentum,
    }
    if recipe.optimizer in FUSED:
        own["fused"] = True
    if recipe.optimizer == "lamb":
        # clipping is the recipe's, each side by itself; lamb's own would let a method's layers shrink the step of the student
        own["max_grad_norm"] = None
    return create_optimizer_v2(learner, opt=recipe.optimizer, **own)
