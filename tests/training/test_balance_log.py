"""What a row of metrics.csv says of a balance."""

from typing import Any

import pytest
import torch

from uhkd.recipe.balance import FamoSettings, LeadSettings
from uhkd.training.balance import Balance, Famo, Lead

ONE = {"uhkd.features": 1, "uhkd.kl": 2}
TWO = {"1:uhkd.features": 1, "2:kd.kl": 4}
SETTINGS: dict[str, Any] = {"features_gate": 0.2, "features_power": 1.0, "features_fall": "cosine", "logits_gate": 0.2}


def lead_of(rows: dict[str, int], right: list[list[float]], has_accuracy: tuple[bool, ...], **settings: Any) -> Lead:
    """A balance that has counted right answers of the student and of each teacher, and images."""
    balance = Lead(rows, LeadSettings(**SETTINGS | settings), has_accuracy)
    balance.counts.copy_(torch.tensor(right).T)
    balance.update(0)
    return balance


def test_a_row_has_whole_factors_and_the_lead():
    balance = lead_of(ONE, [[54.0], [60.0], [100.0]], (True,), logits_gate=0.4)
    assert balance.columns(0, 10) == pytest.approx({"factor_features": 0.5, "factor_logits": 0.25, "lead": 0.1})
    # the schedule of feature terms alone
    assert balance.columns(5, 10) == pytest.approx({"factor_features": 0.25, "factor_logits": 0.25, "lead": 0.1})


def test_leads_of_several_teachers_have_their_number_where_they_were_measured():
    right = [[54.0, 30.0], [60.0, 60.0], [100.0, 100.0]]
    factors = {"factor_1:features": 0.5, "factor_2:logits": 1.0}
    both = lead_of(TWO, right, (True, True)).columns(0, 10)
    assert both == pytest.approx(factors | {"lead_1": 0.1, "lead_2": 0.5})
    second = lead_of(TWO, [[0.0, 30.0], [0.0, 60.0], [0.0, 100.0]], (False, True)).columns(0, 10)
    assert second == pytest.approx(factors | {"factor_1:features": 1.0, "lead_2": 0.5})


@pytest.mark.parametrize(
    ("powers", "told"),
    [
        ({"features_power": 0.0, "logits_power": 0.0}, False),
        ({"features_power": 0.0}, True),
        ({"logits_power": 0.0}, True),
    ],
)
def test_a_lead_that_no_gate_follows_is_not_told(powers: dict[str, float], told: bool):
    assert ("lead" in lead_of(ONE, [[60.0], [60.0], [100.0]], (True,), **powers).columns(0, 10)) == told


def test_the_lead_stays_0_when_the_teacher_was_switched_off_and_its_counts_fade_away():
    balance = lead_of(ONE, [[60.0], [60.0], [100.0]], (True,))
    assert (balance.close_zero_groups(), balance.close_zero_groups()) == ([], [1, 2])  # 1 before anything was counted
    balance.update(3200 * 40)
    assert balance.lead().tolist() == [1.0]
    assert balance.columns(0, 10) == {"factor_features": 0.0, "factor_logits": 0.0, "lead": 0.0}


def test_the_lead_is_still_told_while_one_group_is_not_switched_off():
    balance = lead_of(ONE, [[60.0], [60.0], [100.0]], (True,), logits_power=0.0)
    assert (balance.close_zero_groups(), balance.close_zero_groups()) == ([], [1])
    balance.counts.copy_(torch.tensor([[30.0, 60.0, 100.0]]))
    assert balance.columns(0, 10) == {"factor_features": 0.0, "factor_logits": 1.0, "lead": 0.5}


def test_other_balances_have_no_lead():
    assert Balance(ONE, ("linear", "linear")).columns(5, 10) == {"factor_features": 0.5, "factor_logits": 0.5}
    assert Famo(ONE, FamoSettings()).columns(5, 10).keys() == {"factor_features", "factor_logits"}
