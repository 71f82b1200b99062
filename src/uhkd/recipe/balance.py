"""How much the teacher's terms count during a training: the balances by name, with their settings."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field

from uhkd.recipe.base import StrictModel
from uhkd.recipe.errors import RecipeError, build

BalanceName = Literal["constant", "linear", "cosine", "lead", "cap", "famo"]
Fall = Literal["constant", "linear", "cosine"]


class ScheduleSettings(StrictModel):
    """Settings of constant, linear and cosine: none."""


class LeadSettings(StrictModel):
    """Settings of the balance "lead": factor = min(1, lead / gate)^power * fall, for feature terms and for logit terms.

    lead = max(0, 1 - a_s / a_t), of the running accuracies of student and teacher on the training views.
    """

    features_gate: float = Field(default=1.0, gt=0, le=1, description="lead from which feature terms count in full")
    features_power: float = Field(default=2.0, ge=0, description="of lead / gate, for feature terms; 0: the fall alone")
    features_fall: Fall = Field(
        default="constant", description="factor of feature terms over the training, from 1 to 0"
    )
    logits_gate: float = Field(default=0.2, gt=0, le=1, description="lead from which logit terms count in full")
    logits_power: float = Field(default=1.0, ge=0, description="of lead / gate, for logit terms; 0: the fall alone")
    logits_fall: Fall = Field(default="constant", description="factor of logit terms over the training, from 1 to 0")
    measure: Literal["accuracy", "odds"] = Field(
        default="accuracy", description="what the lead compares: accuracies a, or their odds a / (1 - a)"
    )
    bound: Literal["held-out", "none"] = Field(
        default="held-out",
        description="largest accuracy that a teacher is credited with: its own on held-out images, or none; a teacher may have "
        "learnt its training images by heart",
    )
    window: int = Field(default=3200, ge=1, description="training images over which the accuracies are averaged")


class CapSettings(StrictModel):
    """Settings of the balance "cap": the gradient of the feature terms is at most `ratio` times the cross-entropy's."""

    ratio: float = Field(
        default=0.5, gt=0, description="largest norm of the feature terms' gradient, in the cross-entropy's"
    )
    every: int = Field(default=50, ge=1, description="optimiser steps between two measurements of the gradients")


class FamoSettings(StrictModel):
    """Settings of the balance "famo" (Liu et al. 2023, arXiv 2306.03792)."""

    rate: float = Field(default=0.025, gt=0, description="step size of the task weights")
    decay: float = Field(default=0.001, ge=0, description="how strongly the task weights are drawn back to equality")


Settings = ScheduleSettings | LeadSettings | CapSettings | FamoSettings
_SETTINGS: dict[str, type[Settings]] = {"lead": LeadSettings, "cap": CapSettings, "famo": FamoSettings}


def balance_settings(name: str, settings: Mapping[str, Any]) -> Settings:
    """Return the checked settings of a balance, defaults filled in.

    Raises:
        RecipeError: for an unknown balance, an unknown setting or a value out of range, one line each.
    """
    if name not in get_args(BalanceName):
        raise RecipeError([f"balance: expected one of {', '.join(get_args(BalanceName))}, found {name!r}"])
    kind = _SETTINGS.get(name, ScheduleSettings)
    try:
        return build(kind, settings)
    except RecipeError as error:
        known = ", ".join(kind.model_fields) or "none"
        problems = [
            p.replace("; `uhkd VERB --help` lists the known ones", f" (known: {known})") for p in error.problems
        ]
        raise RecipeError([f"balance_settings.{problem}" for problem in problems]) from None
