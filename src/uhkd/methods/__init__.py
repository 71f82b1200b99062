"""Distillation methods: one paper, one file, one loss. `factory` builds them by name."""

from uhkd.methods.base import DistillationLoss, Requirements
from uhkd.methods.factory import (
    MethodSpec,
    build_losses,
    default_balance,
    find_matching_loss,
    label_free_weights,
    parse_methods,
    resolve_settings,
    uses_logits,
)
from uhkd.methods.registry import method_class, settings_of
from uhkd.recipe.method_table import method_names

__all__ = [
    "DistillationLoss",
    "MethodSpec",
    "Requirements",
    "build_losses",
    "default_balance",
    "find_matching_loss",
    "label_free_weights",
    "method_class",
    "method_names",
    "parse_methods",
    "resolve_settings",
    "settings_of",
    "uses_logits",
]
