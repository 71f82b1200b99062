"""Balances between the cross-entropy and the teacher's loss terms: names and settings."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from uhkd.errors import check_choice
from uhkd.recipe.base import StrictModel
from uhkd.recipe.errors import UNKNOWN_HINT, RecipeError, build

BalanceName = Literal["constant", "linear", "cosine", "lead", "cap", "famo"]
Fall = Literal["constant", "linear", "cosine"]


class ScheduleSettings(StrictModel):
    """Balances "constant", "linear" and "cosine" have no settings."""


class LeadSettings(StrictModel):
    """Settings of balance "lead": factor = min(1, lead / gate)^power * fall, for feature terms and for logit terms.

    lead = max(0, 1 - a_s / a_t), with running accuracies a of student and teacher on the training views, corrected by `bound`.
    """

    features_gate: float = Field(default=1.0, gt=0, le=1, description="lead from which feature terms have full weight")
    features_power: float = Field(default=2.0, ge=0, description="exponent of lead / gate; 0: no effect of the lead")
    features_fall: Fall = Field(default="constant", description="factor over the training: 1, or from 1 to 0")
    logits_gate: float = Field(default=0.2, gt=0, le=1, description="lead from which logit terms have full weight")
    logits_power: float = Field(default=1.0, ge=0, description="exponent of lead / gate; 0: no effect of the lead")
    logits_fall: Fall = Field(default="constant", description="factor over the training: 1, or from 1 to 0")
    measure: Literal["accuracy", "odds"] = Field(default="accuracy", description="accuracy a, or odds a / (1 - a)")
    bound: Literal["both", "held-out", "none"] = Field(
        default="both",
        description="correction by held-out images, because training images may be memorised: of both accuracies, of the "
        "teacher's alone (held-out), or none",
    )
    margin: float = Field(
        default=1.1, ge=1, description="ratio of the student's accuracies from which on it counts as memorisation"
    )
    window: int = Field(default=3200, ge=1, description="number of training images over which accuracies are averaged")


class CapSettings(StrictModel):
    """Settings of balance "cap": the gradient norm of the feature terms is at most `ratio` times the cross-entropy's."""

    ratio: float = Field(default=0.5, gt=0, description="maximum ratio of the two gradient norms")
    every: int = Field(default=50, ge=1, description="optimiser steps between measurements of the gradients")


class FamoSettings(StrictModel):
    """Settings of balance "famo" (Liu et al. 2023, arXiv 2306.03792)."""

    rate: float = Field(default=0.025, gt=0, description="step size of the task weights")
    decay: float = Field(default=0.001, ge=0, description="weight decay that pulls the task weights towards equality")


Settings = ScheduleSettings | LeadSettings | CapSettings | FamoSettings
_SETTINGS: dict[str, type[Settings]] = {"lead": LeadSettings, "cap": CapSettings, "famo": FamoSettings}


def balance_settings(name: str, settings: Mapping[str, Any]) -> Settings:
    """Return the validated settings of a balance, including defaults.

    Raises:
        UhkdError: for an unknown balance.
        RecipeError: for unknown settings or values out of range, one line each.
    """
    check_choice("balance", name, BalanceName)
    kind = _SETTINGS.get(name, ScheduleSettings)
    try:
        return build(kind, settings)
    except RecipeError as error:
        known = f" (known: {', '.join(kind.model_fields) or 'none'})"
        problems = [problem.replace(UNKNOWN_HINT, known) for problem in error.problems]
        raise RecipeError([f"balance_settings.{problem}" for problem in problems]) from None
