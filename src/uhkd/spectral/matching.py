"""Multi-level matching: which taps meet, and on how many coefficients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from uhkd.errors import UhkdError
from uhkd.spectral.fourier import halfplane_frequencies, max_radius
from uhkd.spectral.transform import Form

Standardise = Literal["none", "channel", "coefficient"]
"""What a target's standard deviation is taken over: nothing, all coefficients of a channel, or each coefficient."""
Channels = int | Literal["auto"] | None
"""Channels that a target keeps by PCA: a number, all (None), or "auto", which `resolve_channels` makes a number."""
_CHANNELS = 64  # results/screens/channels.json: not worse than all of them, and a small target to predict and to store


@dataclass(frozen=True)
class LevelPair:
    """One matched pair of taps (indices, shallow to deep) and the representation that both sides are brought to.

    own: coefficients per axis that the teacher's map alone would give at this radius; None: `size`. The FTM fixes its
    statistics on them and then crops to `size`, so that a target is the same for every student, and can be stored.
    """

    student: int
    teacher: int
    size: tuple[int, int]
    form: Form
    own: tuple[int, int] | None = None

    @property
    def full_size(self) -> tuple[int, int]:
        """Coefficients per axis before cropping."""
        return self.own or self.size


@dataclass(frozen=True)
class SpectralTarget:
    """What a method asks of the teacher's side in `NetworkOutput.spectra`: hashable, so it can be compared and fingerprinted.

    whiten: 0..1, how far the spread of the principal channels is evened out; 0 leaves it, 1 gives all the same.
    """

    levels: tuple[LevelPair, ...]
    standardise: Standardise = "coefficient"
    channels: int | None = None
    whiten: float = 0.0


def match_by_depth(students: int, teachers: int) -> list[tuple[int, int]]:
    """Pairs (student tap, teacher tap) at equal relative depth, shallow to deep; the last of both always meet."""
    count = min(students, teachers)
    return [(math.ceil(j * students / count) - 1, math.ceil(j * teachers / count) - 1) for j in range(1, count + 1)]


Maps = Sequence[tuple[int, int, int]]
"""(C, H, W) of the taps of one network, shallow to deep."""


def match_levels(student: Maps, teacher: Maps, radius: int, form: Form) -> tuple[LevelPair, ...]:
    """Match taps by relative depth and give each pair the largest radius <= `radius` that both grids determine, per axis.

    Args:
        student: (C, H, W) of its taps, shallow to deep.
        teacher: (C, H, W) of its taps, shallow to deep.

    Raises:
        UhkdError: for an unknown form, radius < 1, or fewer than two pairs with a frequency beyond the mean.
    """
    _check(radius, form)
    levels = []
    for s, t in match_by_depth(len(student), len(teacher)):
        axes = zip(student[s][1:], teacher[t][1:], strict=True)
        size = tuple(2 * min(radius, max_radius(a), max_radius(b)) + 1 for a, b in axes)
        levels.append(
            LevelPair(s, t, (size[0], size[1]), form, None if form == "area" else _own_size(teacher[t], radius))
        )
    if sum(max(level.size) >= 3 for level in levels) < 2:
        grids = ", ".join(f"{student[v.student][1:]} with {teacher[v.teacher][1:]}" for v in levels) or "no taps"
        raise UhkdError(
            f"feature maps are too small for spectra: at least two matched levels need grids of 3x3 or more, found {grids}; "
            "use larger images, a smaller patch size, or name shallower taps (student_levels, teacher_levels)"
        )
    return tuple(levels)


def _check(radius: int, form: Form) -> None:
    if form not in get_args(Form):
        raise UhkdError(f"unknown form {form!r}; expected one of {', '.join(get_args(Form))}")
    if radius < 1:
        raise UhkdError(f"radius must be at least 1, got {radius}: radius 0 keeps nothing but the mean")


def teacher_levels(teacher: Maps, radius: int, form: Form) -> tuple[LevelPair, ...]:
    """Every tap of a teacher by itself, at its own size: what is stored for students that are not known yet.

    Raises:
        UhkdError: for an unknown form or radius < 1.
    """
    _check(radius, form)
    sizes = [_own_size(shape, radius) for shape in teacher]
    return tuple(LevelPair(i, i, size, form, size) for i, size in enumerate(sizes))


def _own_size(shape: tuple[int, int, int], radius: int) -> tuple[int, int]:
    height, width = (2 * min(radius, max_radius(n)) + 1 for n in shape[1:])
    return height, width


def resolve_channels(channels: Channels, form: Form) -> int | None:
    """How many principal channels are kept; "auto": 64 where the form is linear in the channels, else all (None)."""
    if channels == "auto":
        return _CHANNELS if form in ("pairs", "area") else None
    return channels


def num_coefficients(size: tuple[int, int], form: Form) -> int:
    """K, the numbers a channel has in a representation."""
    pairs = size[0] * size[1]
    return pairs if form in ("pairs", "area") else (pairs + 1) // 2


def crop_indices(own: tuple[int, int], size: tuple[int, int], form: Form) -> list[int] | None:
    """Positions of the numbers of the smaller `size` among those of `own`; None where the two are equal."""
    if own == size:
        return None
    assert form != "area", "cells of different sizes are not parts of one another"
    if form == "pairs":
        return [u * own[1] + v for u in range(size[0]) for v in range(size[1])]
    frequencies = enumerate(halfplane_frequencies(own))
    return [i for i, (u, v) in frequencies if u <= size[0] // 2 and abs(v) <= size[1] // 2]


def ftm_shapes(target: SpectralTarget, maps: Maps) -> tuple[tuple[int, int], ...]:
    """(C_target, K) of each level's target spectrum, known before anything is built."""
    shapes = []
    for level in target.levels:
        channels = maps[level.teacher][0]
        used = channels if target.channels is None else min(channels, target.channels)
        shapes.append((used, num_coefficients(level.size, level.form)))
    return tuple(shapes)
