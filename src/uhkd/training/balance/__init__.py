"""The weights of the teacher's terms during training: one factor for feature terms and one for logit terms of each teacher.

Schedules are functions of the step. The balances "lead", "cap" and "famo" hold their state in tensors on the device, which are
part of the checkpoint and equal in all processes.
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


def group_of(loss: DistillationLoss, term: str) -> str:
    """Return "logits" for a term that compares logits, else "features"."""
    return "logits" if loss.is_logit_method or term in loss.auxiliary_logit_terms else "features"


def make_balance(
    name: str,
    settings: Mapping[str, Any],
    distillers: nn.ModuleDict,
    *,
    has_accuracy: Sequence[bool] = (),
    bounds: Sequence[float | None] = (),
    labels: bool = True,
) -> Balance | None:
    """Return the balance of the terms of `distillers`; None if all weights are constant.

    Args:
        name: see `uhkd.recipe.balance.BalanceName`.
        settings: see there.
        distillers: the losses by name, as for `StudentWithLosses`.
        has_accuracy: for each teacher, whether its accuracy can be computed from its logits.
        bounds: for each teacher, its accuracy on held-out images, 0..1; None, or empty, if unknown.
        labels: whether the images have labels.

    Raises:
        UhkdError: for unknown or invalid settings, or for a balance that needs labels without labels.
    """
    checked: Settings = balance_settings(name, settings)
    groups = {
        f"{key}.{term}": 1 + 2 * loss.teacher_index + GROUPS.index(group_of(loss, term))
        for key, loss in distillers.items()
        if isinstance(loss, DistillationLoss)
        for term in loss.weights
    }
    if not groups or name == "constant":
        return None
    if isinstance(checked, LeadSettings):
        return Lead(groups, checked, has_accuracy or [False], bounds)
    if isinstance(checked, CapSettings):
        if not labels:
            raise UhkdError(
                "balance cap compares with the gradient of the cross-entropy, and these images have no labels"
            )
        return Cap(groups, checked)
    return Famo(groups, checked) if isinstance(checked, FamoSettings) else Balance(groups, (name, name))
