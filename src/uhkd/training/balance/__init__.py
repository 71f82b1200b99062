"""How much the teacher's terms count: factors on the weights of feature and logit terms that change during a training.

Each teacher has two groups of terms, "features" and "logits"; a group has one factor. Schedules are plain numbers by step. The
balances "lead", "cap" and "famo" are tensors on the device, part of the checkpoint, and alike in all processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from uhkd.errors import UhkdError
from uhkd.methods import DistillationLoss
from uhkd.recipe.balance import CapSettings, FamoSettings, LeadSettings, Settings, balance_settings
from uhkd.training.balance.base import GROUPS, Balance
from uhkd.training.balance.cap import Cap
from uhkd.training.balance.famo import Famo
from uhkd.training.balance.lead import Lead

__all__ = ["Balance", "Cap", "Famo", "Lead", "group_of", "make_balance"]


def group_of(distiller: DistillationLoss, term: str) -> str:
    """Return "logits" for a term that compares logits, else "features"."""
    return "logits" if distiller.is_logit_method or term in distiller.auxiliary_logit_terms else "features"


def make_balance(
    name: str,
    settings: Mapping[str, Any],
    distillers: nn.ModuleDict,
    *,
    led: Sequence[bool] = (),
    bounds: Sequence[float] = (),
    labels: bool = True,
) -> Balance | None:
    """Return the balance of the terms of `distillers`; None where all weights are constant.

    Args:
        name: of `uhkd.recipe.balance.BalanceName`.
        settings: see there.
        distillers: by full name, as of `StudentWithLosses`.
        led: of each teacher, whether its logits tell its accuracy on these classes.
        bounds: of each teacher, its accuracy on held-out images, 0..1; empty where it is not known.
        labels: whether the images have labels.

    Raises:
        UhkdError: for unknown or impossible settings, or a balance that needs labels without them.
    """
    checked: Settings = balance_settings(name, settings)
    rows = {
        f"{key}.{term}": 1 + 2 * distiller.teacher_index + GROUPS.index(group_of(distiller, term))
        for key, distiller in distillers.items()
        if isinstance(distiller, DistillationLoss)
        for term in distiller.weights
    }
    if not rows or name == "constant":
        return None
    if isinstance(checked, LeadSettings):
        return Lead(rows, checked, led or [False], bounds)
    if isinstance(checked, CapSettings):
        if not labels:
            raise UhkdError(
                "balance cap compares with the gradient of the labels' term, and these images have no labels"
            )
        return Cap(rows, checked)
    return Famo(rows, checked) if isinstance(checked, FamoSettings) else Balance(rows, (name, name))
