"""Temperatures against literal loops; intervals against draws of a known population; class metrics against scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support
from torch import Tensor

from uhkd.evaluation.class_metrics import class_metrics, top_confusions
from uhkd.evaluation.metrics import Evaluation, gap, score
from uhkd.evaluation.temperature import (
    MINIMUM,
    PRIOR,
    SIGNIFICANT,
    TWO_FOLDS,
    _halves,
    calibrate,
    calibration_figures,
    fit_temperature,
)
from uhkd.reporting.health import calibration_messages


def drawn(n: int, temperature: float, seed: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits whose probabilities are true if they are divided by a temperature, with labels drawn from these."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return temperature * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def literal_nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        scaled = [value / temperature for value in row]
        total += math.log(sum(math.exp(value - max(scaled)) for value in scaled)) + max(scaled) - scaled[label]
    return total / len(labels)


@pytest.mark.parametrize("temperature", [0.03, 0.5, 1.0, 2.5, 40.0])
def test_a_known_temperature_is_recovered(temperature: float):
    logits, labels = drawn(10_000, temperature, seed=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("n", [20, 70, 500])
@pytest.mark.parametrize("case", ["drawn", "right", "chance"])
def test_the_temperature_is_the_minimum_of_a_literal_loss(n: int, case: str):
    logits, labels = drawn(n, 1.7, seed=2)
    labels = {"drawn": labels, "right": logits.argmax(1), "chance": labels.roll(1)}[case]
    fitted = fit_temperature(logits, labels)
    assert isinstance(fitted, float)
    losses = []
    for temperature in (fitted * factor for factor in (0.1, 0.5, 0.9, 0.999, 1, 1.001, 1.1, 2, 10)):
        prior = PRIOR * (1 / temperature - 1 + math.log(temperature))
        losses.append(n * literal_nll(logits, labels, temperature) + prior)
    assert losses.index(min(losses)) == 4


def test_few_images_give_better_probabilities_with_the_prior_than_without_a_fit_or_a_prior():
    """Temperatures of networks that are spread as the prior states, fitted on 30 images, judged on 2,000."""
    means = {"no fit": 0.0, "no prior": 0.0, "prior": 0.0}
    generator = np.random.default_rng(10)
    for network in range(40):
        logits, labels = drawn(2030, 1 / generator.gamma(PRIOR + 1, 1 / PRIOR), seed=200 + network)
        few, others = (logits[:30], labels[:30]), (logits[30:], labels[30:])
        grid = np.exp(np.linspace(-2, 2, 41))
        best = float(min(grid, key=lambda t: literal_nll(*few, t)))
        fitted = fit_temperature(*few)
        assert isinstance(fitted, float)
        for name, temperature in (("no fit", 1.0), ("no prior", best), ("prior", fitted)):
            means[name] += float(torch.nn.functional.cross_entropy(others[0] / temperature, others[1])) / 40
    assert means["prior"] < means["no prior"] and means["prior"] < means["no fit"]


def test_one_half_fits_and_the_other_judges():
    logits, labels = drawn(TWO_FOLDS, 2.0, seed=3)
    one, two = _halves(labels, 0)
    found = calibrate(logits, labels)
    assert found.temperature == fit_temperature(logits[one], labels[one])
    assert (found.images, found.fitted, found.evaluated, found.reason) == (TWO_FOLDS, 100, 100, "")
    for figures, scaled in ((found.before, logits[two]), (found.after, logits[two] / found.temperature)):
        wanted = score(scaled, labels[two]) | {"gap": gap(scaled, labels[two])}
        for name in ("gap", "ece", "nll"):
            assert figures[name]["value"] == pytest.approx(wanted[name], abs=1e-6)
    assert found == calibrate(logits, labels) != calibrate(logits, labels, seed=1)


def test_few_images_are_cross_fitted():
    logits, labels = drawn(TWO_FOLDS - 1, 2.0, seed=4)
    one, two = _halves(labels, 0)
    t_one, t_two = (fit_temperature(logits[part], labels[part]) for part in (one, two))
    assert isinstance(t_one, float) and isinstance(t_two, float) and t_one != t_two
    found = calibrate(logits, labels)
    assert found.temperature == fit_temperature(logits, labels) and found.evaluated == found.fitted == 199
    nll = len(two) * literal_nll(logits[two], labels[two], t_one) + len(one) * literal_nll(
        logits[one], labels[one], t_two
    )
    assert found.after["nll"]["value"] == pytest.approx(nll / 199, abs=1e-5)
    assert "cross-fitted on 199 images" in str(found)


def test_halves_have_the_same_shares_of_classes():
    labels = torch.tensor([0] * 31 + [1] * 50 + [2] + [3] * 8)[torch.randperm(90, generator=torch.manual_seed(0))]
    one, two = _halves(labels, 0)
    assert sorted([*one.tolist(), *two.tolist()]) == list(range(90)) and len(one) == len(two)
    assert (labels[one].bincount() - labels[two].bincount()).abs().max() <= 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_images_are_not_fitted(n: int):
    logits, labels = drawn(n, 2.0, seed=5)
    assert calibrate(logits, labels).reason == f"{n} held-out images, at least {MINIMUM} are needed"


@pytest.mark.parametrize("case", ["few", "chance"])
def test_without_a_best_temperature_it_is_1(case: str):
    logits, labels = drawn(MINIMUM - 1 if case == "few" else 4000, 2.0, seed=5)
    reason = f"{MINIMUM - 1} held-out images, at least {MINIMUM} are needed"
    if case == "chance":
        labels, reason = logits.argmin(1), "the network is worse than chance on a part of the images"
    found = calibrate(logits, labels)
    assert (found.temperature, found.reason, found.before) == (1.0, reason, found.after)
    assert f"not fitted: {reason}" in str(found)


@pytest.mark.parametrize("n", [60, TWO_FOLDS])
def test_a_temperature_must_be_significantly_better(n: int):
    """Temperatures close to 1 are dropped, others kept, by the sums of a literal NLL over the images that fit them."""
    kept: dict[bool, int] = {True: 0, False: 0}
    for seed in range(30):
        logits, labels = drawn(n, 1.3, seed=300 + seed)
        part = _halves(labels, 0)[0] if n >= TWO_FOLDS else torch.arange(n)
        best = fit_temperature(logits[part], labels[part])
        assert isinstance(best, float)
        decrease = literal_nll(logits[part], labels[part], 1.0) - literal_nll(logits[part], labels[part], best)
        significant, found = len(part) * decrease > SIGNIFICANT, calibrate(logits, labels)
        kept[significant] += 1
        assert found.temperature == (best if significant else 1.0)
        if not significant:
            assert found.reason == f"{best:.3g}, the best for {len(part)} images, is not significantly better"
            assert found.before == found.after and found.evaluated == n
    assert min(kept.values()) >= 5


def test_significance_is_of_the_likelihood_ratio_at_5_percent():
    assert pytest.approx(chi2.ppf(0.95, 1) / 2, abs=0.005) == SIGNIFICANT


def test_equal_logits_have_temperature_1():
    assert fit_temperature(torch.zeros(60, 5), torch.arange(60) % 5) == pytest.approx(1)


def test_intervals_cover_the_numbers_of_the_population():
    population = drawn(100_000, 1.7, seed=6)
    truth = score(*population) | {"gap": gap(*population)}
    samples = [calibration_figures(*drawn(100, 1.7, seed=100 + i), seed=i) for i in range(40)]
    for name, least in (("gap", 0.93), ("nll", 0.85), ("ece", 0.8)):
        covered = [x[name]["low"] <= truth[name] <= x[name]["high"] for x in samples]
        assert np.mean(covered) >= least, name
        assert all(x[name]["low"] <= x[name]["value"] <= x[name]["high"] for x in samples)


def test_the_gap_of_a_half_without_an_error_has_an_interval():
    logits = torch.tensor([[2.0, 0.0]]).repeat(60, 1)
    found = calibration_figures(logits, torch.zeros(60, dtype=torch.long))["gap"]
    assert found["low"] == pytest.approx(found["value"]) and found["high"] > found["value"] + 0.05


def test_bad_probabilities_are_reported_where_the_interval_is_beyond_five_points():
    good = calibrate(*drawn(400, 2.0, seed=7))
    assert calibration_messages(good.to_json()) == [] == calibration_messages({})
    for value, low, high, found in ((0.2, 0.06, 0.3, "too high"), (-0.2, -0.3, -0.06, "too low"), (0.2, 0.04, 0.3, "")):
        after = good.after | {"gap": {"value": value, "low": low, "high": high}}
        messages = calibration_messages(replace(good, after=after).to_json())
        assert bool(messages) == bool(found) and found in "".join(messages)
    assert calibration_messages({"after": {"gap": ["x"]}}) == []


def test_class_metrics_are_those_of_scikit_learn():
    """Also where a class has no images (4), is never predicted (3), or neither (5)."""
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(4, (80,), generator=generator)
    logits = torch.randn(80, 6, generator=generator) + torch.nn.functional.one_hot(labels, 6)
    logits[:, [3, 5]] = -9
    found = class_metrics(Evaluation({}, logits, labels), "abcdef")
    assert set(logits.argmax(1).tolist()) == {0, 1, 2, 4}
    wanted = [*precision_recall_fscore_support(labels, logits.argmax(1), labels=range(6), zero_division=0)]
    rows = found["per_class"]
    assert [row["class"] for row in rows] == [*"abcdef"] and [row["images"] for row in rows] == wanted[3].tolist()
    macro = precision_recall_fscore_support(labels, logits.argmax(1), average="macro", zero_division=0)
    for name, by_class, mean in zip(("precision", "recall", "f1"), wanted, macro, strict=False):
        assert [row[name] for row in rows] == pytest.approx(by_class.tolist()) and found[name] == pytest.approx(mean)
    assert found["balanced_accuracy"] != pytest.approx(found["recall"])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    pairs = [(t, p) for t, p in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True)]
    assert found["confusion"] == [[pairs.count((t, p)) for p in range(6)] for t in range(6)]
    top = top_confusions(found["confusion"], 3)
    assert len(top) == 3 and all(t != p and pairs.count((t, p)) == n for n, t, p in top)
    assert top[0][0] == max(pairs.count((t, p)) for t in range(6) for p in range(6) if t != p)
