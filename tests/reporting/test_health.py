"""The health line: trends that noise cannot make, who dominates the gradient, and every sentence with its threshold."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhkd.reporting import health as module
from uhkd.reporting.health import factors, gradient_shares, health, leads, terms_of, trend


def errors(*levels: list[float]) -> dict[str, np.ndarray]:
    """error_l (T, K) with the given means."""
    return {f"error_{i}": np.outer(values, [0.5, 1.5]) for i, values in enumerate(levels)}


FALLING, FLAT, RISING = [1.0, 0.9, 0.8, 0.7, 0.6], [1.0, 1.01, 1.0, 0.99, 1.0], [0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (FALLING, "falling"),
        (RISING, "rising"),
        (FLAT, "flat"),
        ([2.0] * 5, "flat"),
        ([9.0, 9.0, *FLAT], "flat"),  # what was before the window does not count
        (FALLING[:3], None),  # too few
        ([1.0, 0.3, 1.1, 0.4, 0.9], None),  # nobody can say
        ([1.0, 0.99, 0.985, 0.975, 0.97], "flat"),  # certain, but less than 5 %
        ([1.0, 0.98, 0.965, 0.955, 0.94], "falling"),
        ([1.0, 0.9, 0.8, math.nan, 0.6], None),
        ([1.0, 0.5, 0.2, -0.1, -0.3], None),  # a logarithmic loss has no relative change
    ],
)
def test_a_trend_is_told_where_it_is_more_than_noise(values: list[float], found: str | None):
    assert trend(values) == found


@given(seed=st.integers(0, 10_000), spread=st.floats(0.001, 0.5))
def test_noise_around_a_level_seldom_looks_like_a_trend_and_a_clear_fall_does(seed: int, spread: float):
    draw = np.random.default_rng(seed)
    told = [trend(np.exp(spread * draw.standard_normal(5)).tolist()) for _ in range(40)]
    assert (
        sum(one in ("falling", "rising") for one in told) <= 8
    )  # 3 standard errors at 3 degrees of freedom: 6 % expected
    assert trend((np.exp(-np.arange(5.0)) * np.exp(0.01 * draw.standard_normal(5))).tolist()) == "falling"


@pytest.mark.parametrize("values", [FALLING, FLAT, RISING])
def test_a_trend_does_not_depend_on_the_unit(values: list[float]):
    assert trend([1e-4 * v for v in values]) == trend(values) == trend([300 * v for v in values]) is not None


def test_levels_are_told_by_what_they_do():
    found = health([{"step": 5}], errors(FLAT, FALLING, FALLING, RISING, FALLING))
    assert found == ["spectral gap rising at level 4, falling at levels 2-3 and 5, flat at level 1"]
    assert health([{"step": 5}], errors(FALLING[:3])) == []
    assert health([], {}) == []


def test_shares_of_the_gradient_are_of_the_sum_of_norms():
    row = {"loss": 1.0, "kd.kl": 2.0, "ce": 1.0, "grad_ce": 1.0, "grad_kd.kl": 3.0, "val_nll": 0.1}
    assert gradient_shares(row) == {"kd.kl": 0.75, "ce": 0.25}
    assert list(gradient_shares(row)) == ["kd.kl", "ce"]
    assert gradient_shares({"loss": 1.0}) == {} == gradient_shares({"grad_ce": 0.0})
    assert terms_of(row) == ["kd.kl", "ce"]


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ({"ce": 1.0, "kd.kl": 9.0}, ["kd.kl dominates the gradient 9:1"]),
        ({"ce": 1.0, "kd.kl": 4.0}, ["kd.kl dominates the gradient 4:1"]),
        ({"ce": 1.0, "kd.kl": 3.9}, []),
        ({"ce": 2.0, "a.b": 2.0, "a.c": 0.01}, ["a.c has almost no effect, below 1% of the gradient"]),
        (
            {"ce": 2.0, "a.b": 2.0, "a.c": 0.01, "a.d": 0.0},
            ["a.c and a.d have almost no effect, below 1% of the gradient"],
        ),
        ({"ce": 0.001, "a.b": 1.0, "a.c": 1.0}, []),  # usual by our defaults
        (
            {"ce": 2.0, "a.b": 0.0},
            ["ce dominates the gradient alone", "a.b has almost no effect, below 1% of the gradient"],
        ),
    ],
)
def test_a_term_that_dominates_or_hardly_counts_is_named(norms: dict[str, float], said: list[str]):
    assert health([{"step": 3} | {f"grad_{k}": v for k, v in norms.items()}], {}) == said


def test_one_batch_with_an_odd_gradient_says_nothing():
    usual, odd = ({"grad_ce": 1.0, "grad_kd.kl": v} for v in (1.0, 50.0))
    assert health([usual, usual, odd], {}) == []
    assert health([usual, odd, odd], {}) == ["kd.kl dominates the gradient 50:1"]
    assert health([odd, odd, {"loss": 1.0}], {}) == []  # not measured now: nothing is known of now


def test_terms_that_rise_and_overfitting_are_told():
    rows = [{"loss": a, "val_nll": b, "uhkd.features": b} for a, b in zip(FALLING, RISING, strict=True)]
    assert health(rows, {}) == [
        "uhkd.features rising",
        "overfitting: the training loss falls, the validation loss rises",
    ]
    assert health([row | {"val_nll": 1.0, "uhkd.features": 1.0} for row in rows], {}) == []


ONE = {"factor_features": 0.012, "factor_logits": 0.034, "lead": 0.007}
TWO = {"factor_1:features": 0.6, "factor_2:features": 0.0, "factor_2:logits": 0.01, "lead_1": 0.3, "lead_2": 0.0}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ONE, ["the teacher no longer leads: its terms have weight 0.03"]),
        (
            ONE | {"factor_features": 0.0, "factor_logits": 0.0, "lead": 0.0},
            ["the teacher no longer leads: its terms have weight 0.00"],
        ),
        (ONE | {"factor_logits": 0.05}, []),  # one factor is enough
        (
            {k: v for k, v in ONE.items() if k != "factor_features"},
            ["the teacher no longer leads: its terms have weight 0.03"],
        ),
        (ONE | {"lead": 0.01}, []),  # a schedule has ended, the teacher still leads
        ({k: v for k, v in ONE.items() if k != "lead"}, []),  # a balance without a gate
        ({"lead": 0.0}, []),
        (ONE | {"lead": math.nan}, []),
        (ONE | {"factor_logits": math.nan}, []),
        (TWO, ["teacher 2 no longer leads: its terms have weight 0.01"]),
        (TWO | {"lead_1": 0.0}, ["teacher 2 no longer leads: its terms have weight 0.01"]),
        (TWO | {"lead_2": 0.2}, []),
        (
            TWO | {"factor_1:features": 0.02, "lead_1": 0.0},
            [f"teacher {t} no longer leads: its terms have weight {w}" for t, w in ((1, 0.02), (2, 0.01))],
        ),
    ],
)
def test_a_teacher_without_a_lead_is_told_and_the_end_of_a_schedule_is_not(row: dict[str, float], said: list[str]):
    assert health([{"step": 9, "loss": 1.0, **row}], {}) == said
    assert health([row, {"step": 9}], {}) == []  # nothing is known of now


def test_columns_of_a_balance_are_no_terms():
    row = {"loss": 1.0, "ce": 1.0, "2:kd.kl": 2.0, "factor_transfer.kl": 3.0, "lead_2.kl": 1.0, **ONE, **TWO}
    assert terms_of(row) == ["ce", "2:kd.kl", "factor_transfer.kl", "lead_2.kl"]
    assert factors(row) == {"features": 0.012, "logits": 0.034, "1:features": 0.6, "2:features": 0.0, "2:logits": 0.01}
    assert leads(row) == {"": 0.007, "1": 0.3, "2": 0.0}
    assert factors({"loss": 1.0}) == {} == leads({"leader": 1.0, "lead_": 1.0})


def test_terms_that_have_faded_or_were_switched_off_are_not_called_rising():
    names = ("ce", "1:kd.kl", "2:kd.kl")
    rows = [dict.fromkeys(names, v) | {"factor_1:logits": 1.0, "factor_2:logits": 0.5} for v in RISING]
    assert health(rows, {}) == ["ce, 1:kd.kl and 2:kd.kl rising"]
    assert health([*rows[:-1], rows[-1] | {"factor_2:logits": 0.04}], {}) == ["ce and 1:kd.kl rising"]
    off = [{k: v for k, v in rows[-1].items() if k != "2:kd.kl"} | {"factor_2:logits": 0.0}]
    assert health([*rows[:-1], *off], {}) == ["ce and 1:kd.kl rising"]
    alone = [{"ce": v, "kd.kl": v, "factor_logits": 0.04} for v in RISING]
    assert health(alone, {}) == ["ce rising"]


def test_collapsing_features_waiting_and_skipped_steps_are_told():
    spectra = {
        "student_spectrum_0": np.ones((3, 2)),
        "student_spectrum_1": np.array([[1.0, 3.0], [4.0, 4.0], [0.1, 0.2]]),
    }
    assert health([{"step": 9}], spectra) == ["student's features collapsing: energy at level 2 is 3.8% of its maximum"]
    assert health([{"step": 9, "data_wait": 0.371, "skipped": 2}], {}) == [
        "waiting for data 37% of the time",
        "2 of 9 steps skipped, not finite",
    ]
    assert health([{"step": 9, "data_wait": 0.2, "skipped": 0}], {}) == []


def test_the_page_explains_the_thresholds_as_they_are():
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    page = " ".join(page.split())
    for threshold in (
        f"last {module.WINDOW} evaluations",
        f"at least {module.MIN_ROWS}",
        f"{module.CHANGE:.0%}".replace("%", " %"),
        f"{module.MIN_STANDARD_ERRORS:.0f} standard errors",
        f"{module.DOMINANT:.0f}:1",
        f"below {module.MIN_SHARE:.0%}".replace("%", " %"),
        f"below {module.COLLAPSED:.0%}".replace("%", " %"),
        f"below {module.MIN_FACTOR:g}, and its `lead` is below {module.MIN_LEAD:.0%}".replace("%", " %"),
        f"factors are all below {module.MIN_FACTOR:g}",
        f"above {module.WAITING:.0%}".replace("%", " %"),
    ):
        assert threshold in page, threshold


def test_shares_are_of_norms_alone_and_sum_to_one():
    odd = {"grad_a": math.inf, "grad_b": -2.0, "grad_c": math.nan, "loss": 5.0}
    assert gradient_shares(odd | {"grad_d": 3.0, "grad_e": 1.0}) == {"d": 0.75, "e": 0.25}
    assert gradient_shares(odd) == {} and gradient_shares({"grad_a": 0.0}) == {}
    assert gradient_shares({"grad_a": 1e308, "grad_b": 1e308}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_keeps_count_and_rest_of_the_time_beside_what_it_says(width: int, monkeypatch: pytest.MonkeyPatch):
    import io

    from rich.console import Console

    from uhkd.training.progress import ProgressBar

    monkeypatch.setattr("uhkd.console.is_interactive", lambda: True)
    progress = ProgressBar(12000, 128, start=0, log_line=print)
    assert progress.bar is not None
    means = {"loss": 12.345, "ce": 2.0} | {f"uhkd.a-long-name-{i}": 1.0 for i in range(9)}
    progress.log(means, 1e-3)
    progress.bar.update(progress.task, completed=4321)
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as drawn:
        console.print(progress.bar.get_renderable())
    said = drawn.get()
    assert said.count("\n") == 1 and " 4321/12000 " in said and "-:--:--" in said and "loss 12.345" in said
    assert "a-long-name" not in said
