"""Whether a training goes well, in sentences: pure functions of the rows of metrics.csv and the arrays of diagnostics.npz."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

# docs/watching.md explains each; a test holds it to these numbers
WINDOW = 5
"""Evaluations that a trend is read from."""
MIN_ROWS = 4
"""The fewest evaluations from which a trend is read."""
CHANGE = 0.05
"""Relative change over the window from which a trend counts."""
CERTAIN = 3.0
"""Standard errors of the line's slope from which it is more than noise."""
DOMINANT = 4.0
"""One term's gradient by the sum of all others', from which it dominates."""
SLIGHT = 0.01
"""Share of the gradient below which a term hardly counts."""
COLLAPSED = 0.1
"""Part of the highest energy so far below which features have collapsed."""
FADED = 0.05
"""Factor on the weights of a teacher's terms below which they have faded."""
LED = 0.01
"""Lead of the teacher over the student below which there is none left."""
WAITING = 0.2
"""Share of the time spent waiting for data from which it is said."""

Trend = Literal["falling", "rising", "flat"]
"""Where numbers go."""


def health(rows: Sequence[Mapping[str, float]], arrays: Mapping[str, Any]) -> list[str]:
    """What is to be said after the last of `rows`, most telling first; nothing where nothing is known yet.

    rows: as `RunFolder.read_metrics` gives them, the last an evaluation that has just been made. arrays: as
    `RunFolder.read_arrays`; of those only error_l (T, K) and student_spectrum_l (T, R) are read.
    """
    if not rows:
        return []
    sentences = [
        *_gap(arrays),
        *_lead(rows[-1]),
        *_gradients(rows),
        *_terms(rows),
        *_collapse(arrays),
        *_overfitting(rows),
    ]
    last = rows[-1]
    if last.get("data_wait", 0) > WAITING:
        sentences.append(f"waiting for data {last['data_wait']:.0%} of the time")
    if skipped := int(last.get("skipped", 0)):
        sentences.append(f"{skipped} of {last['step']:.0f} steps left out, not finite")
    return sentences


def trend(values: Sequence[float]) -> Trend | None:
    """Where the last `WINDOW` of positive numbers go; None for too few, or so noisy that neither can be said.

    By the straight line through their logarithms: falling or rising when its change over the window is at least `CHANGE` and
    its slope more than `CERTAIN` standard errors; flat when the change is smaller and so is what noise could hide.
    """
    recent = np.asarray(list(values)[-WINDOW:], dtype=float)
    if len(recent) < MIN_ROWS or not (np.isfinite(recent).all() and (recent > 0).all()):
        return None
    y = np.log(recent)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    error = math.sqrt(float(left @ left) / (len(y) - 2) / float(x @ x))
    span = len(y) - 1
    change, uncertainty = math.expm1(slope * span), CERTAIN * error * span
    if abs(change) >= CHANGE:
        return None if abs(slope) <= CERTAIN * error else "falling" if change < 0 else "rising"
    return "flat" if uncertainty < math.log1p(4 * CHANGE) else None


def gradient_shares(row: Mapping[str, float]) -> dict[str, float]:
    """Each term's part of the gradient, 0..1 in sum, largest first: its norm by the sum of all norms; {} where not measured.

    What no norm can be, negative or not finite, is left out.
    """
    norms = {k.removeprefix("grad_"): v for k, v in row.items() if k.startswith("grad_") and 0 <= v < math.inf}
    largest = max(norms.values(), default=0.0)
    # by the largest first: the sum of very large ones would be infinite
    parts = {k: norms[k] / largest for k in sorted(norms, key=lambda k: -norms[k])} if largest > 0 else {}
    total = sum(parts.values())
    return {k: part / total for k, part in parts.items()}


def terms_of(row: Mapping[str, float]) -> list[str]:
    """Names of a row's loss terms: "ce", and those of methods, which have their method before a dot."""
    return [name for name in row if name == "ce" or ("." in name and not name.startswith(("grad_", "val_")))]


def factors(row: Mapping[str, float]) -> dict[str, float]:
    """A row's factors on the weights of the teacher's terms, 0..1, by group: "features", "logits"; of teacher 2 "2:logits"."""
    return {k.removeprefix("factor_"): v for k, v in row.items() if k.startswith("factor_") and "." not in k}


def leads(row: Mapping[str, float]) -> dict[str, float]:
    """A row's leads of teachers over the student, 0..1, where a balance follows them: by the teacher's number, "" for the only
    one."""
    return {found[1] or "": v for k, v in row.items() if (found := re.fullmatch(r"lead(?:_(\d+))?", k))}


def _levels(arrays: Mapping[str, Any], kind: str) -> list[np.ndarray]:
    """The arrays KIND_0, KIND_1, ...: one a level, shallow to deep."""
    count = sum(name.startswith(kind) for name in arrays)
    return [np.asarray(arrays[f"{kind}{i}"], dtype=float) for i in range(count) if f"{kind}{i}" in arrays]


def _gap(arrays: Mapping[str, Any]) -> list[str]:
    """The error of the student's aligned features, level by level."""
    trends = [trend(error.mean(1).tolist()) for error in _levels(arrays, "error_")]
    parts = []
    for kind in ("rising", "falling", "flat"):
        if found := [i + 1 for i, one in enumerate(trends) if one == kind]:
            parts.append(f"{kind} at {_ranges(found)}")
    return [f"spectral gap {', '.join(parts)}"] if parts else []


def _ranges(levels: Sequence[int]) -> str:
    """[1, 3, 4] -> "levels 1 and 3-4"."""
    runs: list[list[int]] = []
    for level in levels:
        if runs and level == runs[-1][-1] + 1:
            runs[-1].append(level)
        else:
            runs.append([level])
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"level{'s' * (len(levels) > 1)} {_listed(spans)}"


def _faded(row: Mapping[str, float]) -> dict[str, float]:
    """The largest factor of each teacher whose factors are all below `FADED`, by its number, "" for the only one."""
    own: dict[str, list[float]] = {}
    for group, factor in factors(row).items():
        own.setdefault(group.rpartition(":")[0], []).append(factor)
    return {teacher: max(each) for teacher, each in own.items() if all(factor < FADED for factor in each)}


def _lead(row: Mapping[str, float]) -> list[str]:
    """By the lead, not by the factors alone: these end near 0 by a schedule too."""
    known = leads(row)
    return [
        f"{f'teacher {teacher}' if teacher else 'the teacher'} no longer leads: its terms have weight {factor:.2f}"
        for teacher, factor in _faded(row).items()
        if known.get(teacher, math.inf) < LED
    ]


def _gradients(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Medians over the last three evaluations: one batch says little."""
    recent = [found for row in rows[-3:] if (found := gradient_shares(row))]
    if not recent or not gradient_shares(rows[-1]):
        return []
    middle = {name: float(np.median([found.get(name, 0.0) for found in recent])) for name in recent[-1]}
    first = max(middle, key=lambda name: middle[name])
    rest = sum(value for name, value in middle.items() if name != first)
    sentences = []
    if middle[first] >= DOMINANT * rest:
        ratio = middle[first] / rest if rest > 0 else math.inf
        sentences.append(f"{first} dominates the gradient {f'{ratio:.0f}:1' if ratio < 1000 else 'alone'}")
    slight = [
        name for name, value in middle.items() if value < SLIGHT and name != "ce"
    ]  # by our defaults ce is that small
    if slight:
        sentences.append(
            f"{_listed(slight)} hardly count{'s' * (len(slight) == 1)}, below {SLIGHT:.0%} of the gradient"
        )
    return sentences


def _terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Terms of the last row, but those that have faded: nothing holds them down any more."""
    faded = _faded(rows[-1])
    rising = [
        name
        for name in terms_of(rows[-1])
        if (name == "ce" or _teacher_of(name) not in faded)
        and trend([row[name] for row in rows if name in row]) == "rising"
    ]
    return [f"{_listed(rising)} rising"] if rising else []


def _teacher_of(term: str) -> str:
    """The number of a term's teacher among several: "2" of "2:uhkd.features", "" of "uhkd.features"."""
    return term.partition(".")[0].rpartition(":")[0]


def _collapse(arrays: Mapping[str, Any]) -> list[str]:
    fallen = []
    for i, spectrum in enumerate(_levels(arrays, "student_spectrum_")):
        energy = spectrum.sum(1)
        if len(energy) > 1 and energy[-1] < COLLAPSED * energy.max():
            share = energy[-1] / energy.max()
            fallen.append(f"energy at level {i + 1} fallen to {share:.1%} of its highest")
    return [f"student's features collapsing: {', '.join(fallen)}"] if fallen else []


def _overfitting(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """In nats, not in accuracy: that is coarse on few images, and says nothing of how sure wrong answers are."""
    learned, held_out = ([row[name] for row in rows if name in row] for name in ("loss", "val_nll"))
    if trend(learned) == "falling" and trend(held_out) == "rising":
        return ["overfitting: the training loss falls, that on validation images rises"]
    return []


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
