"""Spatial twins A and B of UHKD: the same matching without a Fourier transform, for ablations.

A area-pools both maps to as many cells as UHKD has coefficients in its form "pairs"; B pools to the smaller of the two
grids. Standardisation, channel reduction, projector, levels and soft targets are the same as in UHKD, so a difference in
accuracy comes from the representation.
"""

from collections.abc import Mapping
from dataclasses import replace

from uhkd.features import PairShapes
from uhkd.methods.base import teacher_shapes
from uhkd.methods.spectral_matching import MultiLevelLoss, Norm
from uhkd.spectral import Channels, SpectralTarget, Standardise, match_levels, resolve_channels
from uhkd.spectral.fam import FAMForm


class PooledTwin(MultiLevelLoss):
    """Spatial twin A: area-pool both maps to (2*radius+1) cells per axis and match the cells as UHKD matches coefficients.

    The settings are those of `UHKD`, except the spectral ones.
    """

    full_grid = False
    tunable = ("radius", (2, 3))

    def __init__(
        self,
        shapes: PairShapes,
        weights: Mapping[str, float] | None = None,
        *,
        radius: int = 1,
        standardise: Standardise = "coefficient",
        channels: Channels = "auto",
        fam: FAMForm = "linear",
        hidden: int | None = None,
        level_weights: tuple[float, ...] | None = None,
        whiten: float = 0.0,
        norm: Norm = "mse",
        temperature: float = 4.0,
    ) -> None:
        student, teacher = shapes.student.maps, teacher_shapes(shapes, "twin_b" if self.full_grid else "twin_a").maps
        super().__init__(weights, temperature)
        if self.matches:
            levels = match_levels(student, teacher, radius, "area")
            if self.full_grid:
                smaller = [tuple(map(min, student[v.student][1:], teacher[v.teacher][1:])) for v in levels]
                levels = tuple(replace(v, size=(h, w)) for v, (h, w) in zip(levels, smaller, strict=True))
            target = SpectralTarget(levels, standardise, resolve_channels(channels, "area"), whiten)
            self.match_features(shapes, target, fam=fam, hidden=hidden, level_weights=level_weights, norm=norm)


class FullGridTwin(PooledTwin):
    """Spatial twin B: as twin A, but on the smaller of the two full grids of each level (`radius` has no effect)."""

    full_grid = True
    tunable = ("standardise", ("channel", "none"))
