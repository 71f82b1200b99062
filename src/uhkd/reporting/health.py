"""Health messages of a training: pure functions of the rows of metrics.csv and the arrays of diagnostics.npz."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from uhkd.console import join
from uhkd.reporting.run_data import number

# docs/watching.md explains each; a test compares its numbers with these
WINDOW = 5
"""Number of evaluations in a trend."""
MIN_ROWS = 4
"""Minimum number of evaluations for a trend."""
CHANGE = 0.05
"""Relative change over the window from which a trend is falling or rising."""
MIN_STANDARD_ERRORS = 3.0
"""Number of standard errors above which a slope is more than noise."""
DOMINANT = 4.0
"""Ratio of a term's gradient norm to the sum of all others from which it dominates."""
MIN_SHARE = 0.01
"""Share of the gradient below which a term has almost no effect."""
COLLAPSED = 0.1
"""Fraction of the highest energy so far below which features are collapsing."""
MIN_FACTOR = 0.05
"""Factor on the weights of a teacher's terms below which they are inactive."""
MIN_LEAD = 0.01
"""Lead below which a teacher no longer leads."""
WAITING = 0.2
"""Share of the time waiting for data above which it is reported."""
MAX_GAP = 0.05
"""Difference of mean confidence and accuracy beyond which probabilities are reported as wrong."""

Trend = Literal["falling", "rising", "flat"]
"""Direction of a curve over the last evaluations."""


def health(rows: Sequence[Mapping[str, float]], arrays: Mapping[str, Any]) -> list[str]:
    """Return the messages after the last evaluation, the most important first.

    rows: as returned by `RunFolder.read_metrics`. arrays: as returned by `RunFolder.read_arrays`; only error_l of shape (T, K)
    and student_spectrum_l of shape (T, R) are used, for T evaluations.
    """
    if not rows:
        return []
    last = rows[-1]
    messages = [
        *_feature_errors(arrays),
        *_lead(last),
        *_gradients(rows),
        *_terms(rows),
        *_collapse(arrays),
        *_overfitting(rows),
    ]
    if last.get("data_wait", 0) > WAITING:
        messages.append(f"waiting for data {last['data_wait']:.0%} of the time")
    if skipped := int(last.get("skipped", 0)):
        messages.append(f"{skipped} of {last['step']:.0f} steps skipped, not finite")
    return messages


def calibration_messages(calibration: Mapping[str, Any]) -> list[str]:
    """Return a message if the gap with the temperature is surely beyond `MAX_GAP`: with its whole 95 % interval.

    calibration: as returned by `RunFolder.read_calibration`.
    """
    gap, low, high = (number(calibration, "after", "gap", key) or 0.0 for key in ("value", "low", "high"))
    if low <= MAX_GAP and high >= -MAX_GAP:
        return []
    return [
        f"probabilities too {'high' if gap > 0 else 'low'}: confidence minus accuracy is {100 * gap:+.1f} points on held-out "
        f"images ({100 * low:+.1f} to {100 * high:+.1f})"
    ]


def trend(values: Sequence[float]) -> Trend | None:
    """Return the trend of the last `WINDOW` positive numbers, or None for too few or too noisy ones.

    A straight line is fitted to their logarithms. Falling or rising: its change over the window is at least `CHANGE` and its
    slope more than `MIN_STANDARD_ERRORS`. Flat: the change is smaller, and noise could not hide one of 4 `CHANGE`.
    """
    recent = np.asarray(list(values)[-WINDOW:], dtype=float)
    if len(recent) < MIN_ROWS or not (np.isfinite(recent).all() and (recent > 0).all()):
        return None
    y, span = np.log(recent), len(recent) - 1
    x = np.arange(len(y)) - span / 2
    slope = float(x @ y / (x @ x))
    residual = y - y.mean() - slope * x
    uncertainty = MIN_STANDARD_ERRORS * math.sqrt(float(residual @ residual) / (len(y) - 2) / float(x @ x))
    change = math.expm1(slope * span)
    if abs(change) >= CHANGE:
        return None if abs(slope) <= uncertainty else "falling" if change < 0 else "rising"
    return "flat" if uncertainty * span < math.log1p(4 * CHANGE) else None


def gradient_shares(row: Mapping[str, float]) -> dict[str, float]:
    """Return each term's share of the gradient (its norm divided by the sum of norms), largest first; {} if not measured.

    Values that are negative or not finite are left out.
    """
    norms = {k.removeprefix("grad_"): v for k, v in row.items() if k.startswith("grad_") and 0 <= v < math.inf}
    largest = max(norms.values(), default=0.0)
    # divided by the largest, because the sum of very large norms overflows
    parts = {k: norms[k] / largest for k in sorted(norms, key=lambda k: -norms[k])} if largest > 0 else {}
    total = sum(parts.values())
    return {k: part / total for k, part in parts.items()}


def terms_of(row: Mapping[str, float]) -> list[str]:
    """Return the names of the loss terms in a row: "ce" and METHOD.TERM."""
    return [name for name in row if name == "ce" or ("." in name and not name.startswith(("grad_", "val_")))]


def factors(row: Mapping[str, float]) -> dict[str, float]:
    """Return the factors (0 to 1) on the weights of teachers' terms, by group: "features", "logits"; "2:logits" of teacher 2."""
    return {k.removeprefix("factor_"): v for k, v in row.items() if k.startswith("factor_") and "." not in k}


def leads(row: Mapping[str, float]) -> dict[str, float]:
    """Return the leads (0 to 1) of teachers over the student, by the teacher's number ("" for a single teacher)."""
    return {match[1] or "": v for k, v in row.items() if (match := re.fullmatch(r"lead(?:_(\d+))?", k))}


def _levels(arrays: Mapping[str, Any], kind: str) -> list[np.ndarray]:
    """Return the arrays KIND_0, KIND_1, ..., one per level from shallow to deep."""
    count = sum(name.startswith(kind) for name in arrays)
    return [np.asarray(arrays[f"{kind}{i}"], dtype=float) for i in range(count) if f"{kind}{i}" in arrays]


def _feature_errors(arrays: Mapping[str, Any]) -> list[str]:
    """Return the trends of the student's aligned feature errors by level."""
    trends = [trend(error.mean(1).tolist()) for error in _levels(arrays, "error_")]
    parts = []
    for kind in ("rising", "falling", "flat"):
        if levels := [i for i, level_trend in enumerate(trends, 1) if level_trend == kind]:
            parts.append(f"{kind} at {_ranges(levels)}")
    return [f"spectral gap {', '.join(parts)}"] if parts else []


def _ranges(levels: Sequence[int]) -> str:
    """Return [1, 3, 4] as "levels 1 and 3-4"."""
    runs: list[list[int]] = []
    for level in levels:
        if not runs or level > runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(level)
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"level{'s' * (len(levels) > 1)} {join(spans)}"


def _inactive_teachers(row: Mapping[str, float]) -> dict[str, float]:
    """Return the largest factor of each teacher with all factors below `MIN_FACTOR`, by its number ("" for a single teacher)."""
    by_teacher: dict[str, list[float]] = defaultdict(list)
    for group, factor in factors(row).items():
        by_teacher[group.rpartition(":")[0]].append(factor)
    # not max(values) < MIN_FACTOR: max() would skip a NaN
    return {t: max(values) for t, values in by_teacher.items() if all(factor < MIN_FACTOR for factor in values)}


def _lead(row: Mapping[str, float]) -> list[str]:
    """Return inactive teachers without a lead: a schedule also ends with factors near 0."""
    lead = leads(row)
    return [
        f"{f'teacher {teacher}' if teacher else 'the teacher'} no longer leads: its terms have weight {factor:.2f}"
        for teacher, factor in _inactive_teachers(row).items()
        if lead.get(teacher, math.inf) < MIN_LEAD
    ]


def _gradients(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return dominant and small terms by the median over three evaluations, because one batch is noisy."""
    recent = [shares for row in rows[-3:] if (shares := gradient_shares(row))]
    if not recent or not gradient_shares(rows[-1]):
        return []
    median = {name: float(np.median([shares.get(name, 0.0) for shares in recent])) for name in recent[-1]}
    first = max(median, key=lambda name: median[name])
    rest = sum(value for name, value in median.items() if name != first)
    messages = []
    if median[first] >= DOMINANT * rest:
        ratio = median[first] / rest if rest > 0 else math.inf
        messages.append(f"{first} dominates the gradient {f'{ratio:.0f}:1' if ratio < 1000 else 'alone'}")
    # the default weights make ce that small
    if small := [name for name, value in median.items() if value < MIN_SHARE and name != "ce"]:
        have = "has" if len(small) == 1 else "have"
        messages.append(f"{join(small)} {have} almost no effect, below {MIN_SHARE:.0%} of the gradient")
    return messages


def _terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the rising terms, without those of inactive teachers, which are no longer minimised."""
    inactive = _inactive_teachers(rows[-1])
    rising = [
        name
        for name in terms_of(rows[-1])
        if (name == "ce" or name.partition(".")[0].rpartition(":")[0] not in inactive)
        and trend([row[name] for row in rows if name in row]) == "rising"
    ]
    return [f"{join(rising)} rising"] if rising else []


def _collapse(arrays: Mapping[str, Any]) -> list[str]:
    levels = []
    for i, spectrum in enumerate(_levels(arrays, "student_spectrum_")):
        energy = spectrum.sum(1)
        if len(energy) > 1 and energy[-1] < COLLAPSED * energy.max():
            share = energy[-1] / energy.max()
            levels.append(f"energy at level {i + 1} is {share:.1%} of its maximum")
    return [f"student's features collapsing: {', '.join(levels)}"] if levels else []


def _overfitting(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Compare losses, because accuracy is coarse on few images and ignores the confidence of wrong predictions."""
    training, validation = ([row[name] for row in rows if name in row] for name in ("loss", "val_nll"))
    if trend(training) == "falling" and trend(validation) == "rising":
        return ["overfitting: the training loss falls, the validation loss rises"]
    return []
