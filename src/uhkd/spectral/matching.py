"""Multi-level matching: pairs of feature maps, and the number of coefficients of each pair."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uhkd.errors import UhkdError, check_choice
from uhkd.spectral.fourier import halfplane_frequencies, max_radius
from uhkd.spectral.transform import Form

Standardise = Literal["none", "channel", "coefficient"]
"""Unit of a target's standardisation: none, all coefficients of a channel together, or each coefficient."""
Channels = int | Literal["auto"] | None
"""Number of principal channels of a target: None: all; "auto": see `resolve_channels`."""
# results/screens/channels.json: not worse than all channels, and the target is small to predict and store
_CHANNELS = 64


@dataclass(frozen=True)
class LevelPair:
    """Indices (shallow to deep) of one matched pair of feature maps, and the transform of both.

    size: coefficients per axis (cells for the form "area"). own: coefficients per axis of the teacher's map without a
    student; None: `size`. The FTM computes its statistics on `own` and then crops to `size`, so that a target is the same
    for every student and can be cached.
    """

    student: int
    teacher: int
    size: tuple[int, int]
    form: Form
    own: tuple[int, int] | None = None

    @property
    def full_size(self) -> tuple[int, int]:
        """Return the coefficients per axis before cropping."""
        return self.own or self.size


@dataclass(frozen=True)
class SpectralTarget:
    """Definition of the teacher's spectra (`NetworkOutput.spectra`) that a method needs: comparable and hashable.

    channels: number of principal channels; None: all. whiten: 0..1, how far the variances of the principal channels are
    equalised; 0: unchanged, 1: equal.
    """

    levels: tuple[LevelPair, ...]
    standardise: Standardise = "coefficient"
    channels: int | None = None
    whiten: float = 0.0


def match_by_depth(students: int, teachers: int) -> list[tuple[int, int]]:
    """Return index pairs (student, teacher) at equal relative depth, shallow to deep; the last pair is the deepest of both."""
    count = min(students, teachers)
    return [(math.ceil(j * students / count) - 1, math.ceil(j * teachers / count) - 1) for j in range(1, count + 1)]


Maps = Sequence[tuple[int, int, int]]
"""(C, H, W) of each feature map of one network, shallow to deep."""


def match_levels(student: Maps, teacher: Maps, radius: int, form: Form) -> tuple[LevelPair, ...]:
    """Match feature maps by relative depth, each pair with the largest radius <= `radius` that both grids allow, per axis.

    Raises:
        UhkdError: for an unknown form, radius < 1, or fewer than two pairs with any frequency above 0.
    """
    _check_transform(radius, form)
    levels = []
    for s, t in match_by_depth(len(student), len(teacher)):
        axes = zip(student[s][1:], teacher[t][1:], strict=True)
        size = tuple(2 * min(radius, max_radius(a), max_radius(b)) + 1 for a, b in axes)
        own = None if form == "area" else _teacher_size(teacher[t], radius)
        levels.append(LevelPair(s, t, (size[0], size[1]), form, own))
    if not levels:
        raise UhkdError(
            f"spectra are of feature maps, and the {'teacher' if student else 'student'} has none: choose a method that reads "
            "logits (kd, dist) or embeddings (rkd, rsd)"
        )
    if sum(max(level.size) >= 3 for level in levels) < 2:
        grids = ", ".join(f"{student[v.student][1:]} with {teacher[v.teacher][1:]}" for v in levels)
        raise UhkdError(
            f"feature maps are too small for spectra: at least two matched levels need grids of 3x3 or more, found {grids}; "
            "use larger images, a smaller patch size, or name shallower layers (student_levels, teacher_levels)"
        )
    return tuple(levels)


def _check_transform(radius: int, form: Form) -> None:
    check_choice("form", form, Form)
    if radius < 1:
        raise UhkdError(f"radius must be at least 1, got {radius}: with radius 0 only the mean is left")


def teacher_levels(teacher: Maps, radius: int, form: Form) -> tuple[LevelPair, ...]:
    """Return a level for each feature map of a teacher, at the size of the map: the targets of a cache for any student.

    Raises:
        UhkdError: for an unknown form or radius < 1.
    """
    _check_transform(radius, form)
    sizes = [_teacher_size(shape, radius) for shape in teacher]
    return tuple(LevelPair(i, i, size, form, size) for i, size in enumerate(sizes))


def _teacher_size(shape: tuple[int, int, int], radius: int) -> tuple[int, int]:
    height, width = (2 * min(radius, max_radius(n)) + 1 for n in shape[1:])
    return height, width


def resolve_channels(channels: Channels, form: Form) -> int | None:
    """Return the number of principal channels; "auto": 64 for forms that are linear in the channels, else all (None)."""
    if channels == "auto":
        return _CHANNELS if form in ("pairs", "area") else None
    return channels


def num_coefficients(size: tuple[int, int], form: Form) -> int:
    """Return K, the number of features per channel."""
    pairs = size[0] * size[1]
    return pairs if form in ("pairs", "area") else (pairs + 1) // 2


def crop_indices(own: tuple[int, int], size: tuple[int, int], form: Form) -> list[int] | None:
    """Return the indices of the features of the smaller `size` among those of the size `own`; None for equal sizes."""
    if own == size:
        return None
    assert form != "area", "cells of one size are no subset of cells of another size"
    if form == "pairs":
        return [u * own[1] + v for u in range(size[0]) for v in range(size[1])]
    frequencies = enumerate(halfplane_frequencies(own))
    return [i for i, (u, v) in frequencies if u <= size[0] // 2 and abs(v) <= size[1] // 2]


def ftm_shapes(target: SpectralTarget, maps: Maps) -> tuple[tuple[int, int], ...]:
    """Return (C_target, K) of the target spectrum of each level."""
    channels = [maps[level.teacher][0] for level in target.levels]
    if target.channels is not None:
        channels = [min(count, target.channels) for count in channels]
    coefficients = [num_coefficients(level.size, level.form) for level in target.levels]
    return tuple(zip(channels, coefficients, strict=True))
