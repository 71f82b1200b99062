"""Multi-level matching: which taps meet, and on how many coefficients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from uhkd.spectral.fourier import max_radius
from uhkd.spectral.representation import Form

Standardise = Literal["none", "channel", "coefficient"]


@dataclass(frozen=True)
class Level:
    """One matched pair of taps (indices, shallow to deep) and the representation that both sides are brought to."""

    student: int
    teacher: int
    size: tuple[int, int]
    form: Form


@dataclass(frozen=True)
class SpectralTarget:
    """What a method asks of the teacher's side in `Signals.spectra`: hashable, so it can be compared and fingerprinted."""

    levels: tuple[Level, ...]
    standardise: Standardise = "coefficient"
    channels: int | None = None


def match_by_depth(students: int, teachers: int) -> list[tuple[int, int]]:
    """Pairs (student tap, teacher tap) at equal relative depth, shallow to deep; the last of both always meet."""
    count = min(students, teachers)
    return [(math.ceil(j * students / count) - 1, math.ceil(j * teachers / count) - 1) for j in range(1, count + 1)]


Maps = Sequence[tuple[int, int, int]]


def match_levels(student: Maps, teacher: Maps, radius: int, form: Form) -> tuple[Level, ...]:
    """Match taps by relative depth and give each pair the largest radius <= `radius` that both grids determine, per axis.

    Args:
        student, teacher: (C, H, W) of the taps, shallow to deep.

    Raises:
        ValueError: for an unknown form, radius < 1, or fewer than two pairs with a frequency beyond the mean.
    """
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r}; expected one of {', '.join(get_args(Form))}")
    if radius < 1:
        raise ValueError(f"radius must be at least 1, got {radius}: radius 0 keeps nothing but the mean")
    levels = []
    for s, t in match_by_depth(len(student), len(teacher)):
        axes = zip(student[s][1:], teacher[t][1:], strict=True)
        size = tuple(2 * min(radius, max_radius(a), max_radius(b)) + 1 for a, b in axes)
        levels.append(Level(s, t, (size[0], size[1]), form))
    if sum(max(level.size) >= 3 for level in levels) < 2:
        grids = ", ".join(f"{student[v.student][1:]} with {teacher[v.teacher][1:]}" for v in levels) or "no taps"
        raise ValueError(
            f"feature maps are too small for spectra: at least two matched levels need grids of 3x3 or more, found {grids}; "
            "use larger images, a smaller patch size, or name shallower taps (student_levels, teacher_levels)"
        )
    return tuple(levels)


def ftm_shapes(target: SpectralTarget, maps: Maps) -> tuple[tuple[int, int], ...]:
    """(C_target, K) of each level's target spectrum, known before anything is built."""
    shapes = []
    for level in target.levels:
        channels = maps[level.teacher][0]
        k = level.size[0] * level.size[1]
        kept = channels if target.channels is None else min(channels, target.channels)
        shapes.append((kept, k if level.form in ("pairs", "area") else (k + 1) // 2))
    return tuple(shapes)
