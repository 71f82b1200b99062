"""One temperature for the logits of a trained network: fitted on a part of the held-out images, evaluated on the rest."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

TWO_FOLDS = 200
"""Number of held-out images below which all of them fit the temperature, and each half is evaluated with the other's."""
MINIMUM = 20
"""Number of held-out images below which nothing is fitted."""
PRIOR = 4.0
"""Strength of the prior of 1/T, a gamma distribution with mode 1: its standard deviation is about 1/sqrt(PRIOR)."""
SIGNIFICANT = 1.92
"""Decrease of the NLL in nats, summed over the images, that a temperature needs: the likelihood-ratio test at 5 %."""
BINS = 15
_LIMIT = 7.0  # of the logarithm of a temperature
_RESAMPLES = 1000
_CHUNK = 4096  # images at a time in double precision
Figures = dict[str, dict[str, float]]
"""gap (mean confidence minus accuracy), ece (15 bins), nll (nats): each `value`, and `low` and `high` of its 95 % interval."""


@dataclass(frozen=True)
class Calibration:
    """A temperature T, by which logits are divided, and what it changes on images that it was not fitted on.

    images: held out. fitted, evaluated: how many of them; the same ones only where two folds were cross-fitted. reason: why T is
    1 without a fit, else "".
    """

    temperature: float
    images: int
    fitted: int
    evaluated: int
    reason: str
    before: Figures
    after: Figures

    def to_json(self) -> dict[str, Any]:
        """Return the content of calibration.json: all fields, and `summary`, their text."""
        return asdict(self) | {"summary": str(self)}

    def __str__(self) -> str:
        def shown(name: str, scale: float, form: str) -> str:
            first, *rest = (scale * x for x in (self.before[name]["value"], *self.after[name].values()))
            last, low, high = (format(x, form) for x in rest)
            return f"{'' if self.reason else f'{first:{form}} and '}{last} ({low} to {high})"

        folds = "" if self.fitted < self.images else "cross-"
        fit = f"{self.temperature:.3g}, {folds}fitted on {self.fitted} images"
        fit = f"1, not fitted: {self.reason}" if self.reason else fit
        return (
            f"temperature {fit}; on {self.evaluated} held-out images{'' if self.reason else ', before and after'} (95 % "
            f"interval): confidence minus accuracy {shown('gap', 100, '+.1f')} points, ECE {shown('ece', 100, '.1f')} %, "
            f"NLL {shown('nll', 1, '.3f')}"
        )


def calibrate(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], seed: int = 0) -> Calibration:
    """Fit a temperature on one half of the images and judge it on the other; halves have the same shares of classes.

    With fewer than `TWO_FOLDS` images all of them fit the temperature, and each half is evaluated with that of the other. The
    temperature is 1 with fewer than `MINIMUM` images, where a part has no best one, and where the best one is not significantly
    better, because it is then off by chance more often than it helps. seed: of the halves and of the intervals.
    """
    n, (one, two) = len(labels), _halves(labels, seed)
    fits: list[float | str] = [f"{n} held-out images, at least {MINIMUM} are needed"]
    folds = [(one, two)] if n >= TWO_FOLDS else [(one, two), (two, one)]
    parts = [fitted for fitted, _ in folds] + ([torch.arange(n)] if n < TWO_FOLDS else [])
    if n >= MINIMUM:
        fits = [fit_temperature(logits[part], labels[part]) for part in parts]
    temperatures = [fit for fit in fits if not isinstance(fit, str)]
    reasons = [fit for fit in fits if isinstance(fit, str)]
    fitted = parts[-1]
    if not reasons and not _significant(logits[fitted], labels[fitted], temperatures[-1]):
        reasons = [f"{temperatures[-1]:.3g}, the best for {len(fitted)} images, is not significantly better"]
    if reasons:
        before = calibration_figures(logits, labels, seed)
        return Calibration(1.0, n, 0, n, reasons[0], before, before)
    evaluated = torch.cat([part for _, part in folds])
    scaled = torch.cat([logits[part] / t for (_, part), t in zip(folds, temperatures[: len(folds)], strict=True)])
    before, after = (calibration_figures(x, labels[evaluated], seed) for x in (logits[evaluated], scaled))
    return Calibration(temperatures[-1], n, len(one) if len(folds) == 1 else n, len(evaluated), "", before, after)


def fit_temperature(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float | str:
    """Return the most probable T after these images, or the reason why there is none.

    With u = 1/T it minimises the sum of the NLL of u * logits and of the prior's PRIOR * (u - 1 - log u). Both are convex in u,
    so that the minimum is the one zero of the derivative: sum of expected minus true logits, plus PRIOR * (1 - 1/u). The prior
    matters with few images only, whose best temperature may be far off by chance.
    """
    from scipy.optimize import brentq

    def slope(log_t: float) -> float:
        total = PRIOR * (1 - math.exp(log_t))
        for z, y in zip(logits.split(_CHUNK), labels.split(_CHUNK), strict=True):
            z = z.double()
            expected = ((z / math.exp(log_t)).softmax(1) * z).sum(1)
            total += float((expected - z.gather(1, y[:, None]).squeeze(1)).sum())
        return total / len(labels)

    if slope(_LIMIT) >= 0:
        return "the network is worse than chance on a part of the images"
    root: Any = brentq(slope, -_LIMIT, _LIMIT, xtol=1e-10)
    return math.exp(root)


def _significant(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], temperature: float) -> bool:
    """Return whether a temperature decreases the summed NLL by more than `SIGNIFICANT`."""
    decrease = 0.0
    for z, y in zip(logits.split(_CHUNK), labels.split(_CHUNK), strict=True):
        before, after = (cross_entropy(z.double() / t, y, reduction="sum") for t in (1.0, temperature))
        decrease += float(before - after)
    return decrease > SIGNIFICANT


def calibration_figures(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], seed: int = 0) -> Figures:
    """Return the figures of the probabilities, of labelled images.

    The interval of the gap is Wilson's of the accuracy, which holds without any error too; those of the others are of the basic
    bootstrap over the images, which corrects a part of the upward bias of the ECE of few images.
    """
    from scipy.stats import binomtest

    probabilities = logits.float().softmax(1)
    confidence, predicted = (x.double().numpy() for x in probabilities.max(1))
    nll = cross_entropy(logits.float(), labels, reduction="none").double().numpy()
    correct, n = predicted == labels.numpy(), len(labels)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    excess = confidence - correct
    values = np.zeros((n, BINS + 1))  # an image's contribution to each bin, and its NLL
    values[np.arange(n), bins], values[:, BINS] = excess, nll
    generator, equal = np.random.default_rng(seed), np.full(n, 1 / n)
    parts = [generator.multinomial(n, equal, size=_RESAMPLES // 10) @ values for _ in range(10)]

    def ece_nll(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.abs(sums[:, :BINS]).sum(1) / n, sums[:, BINS] / n

    def interval(measured: np.ndarray, resampled: np.ndarray) -> dict[str, float]:
        value, (top, bottom) = float(measured[0]), np.percentile(resampled, (97.5, 2.5))
        low, high = min(max(2 * value - top, 0.0), value), max(2 * value - bottom, value)
        return {"value": value, "low": float(low), "high": float(high)}

    accuracy = binomtest(int(correct.sum()), n).proportion_ci(method="wilson")
    mean, value = float(confidence.mean()), float(excess.mean())
    gap = {"value": value, "low": mean - float(accuracy.high), "high": mean - float(accuracy.low)}
    ece, nats = map(interval, ece_nll(values.sum(0, keepdims=True)), ece_nll(np.concatenate(parts)))
    return {"gap": gap, "ece": ece, "nll": nats}


def _halves(labels: Int[Tensor, " n"], seed: int) -> tuple[Tensor, Tensor]:
    """Return the sorted positions of two halves with the same shares of classes, in random order within a class."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = torch.from_numpy(shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")])
    return by_class[::2].sort().values, by_class[1::2].sort().values
