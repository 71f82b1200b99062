"""The spatial twins A and B of UHKD: the same matching without a Fourier transform. Ablations, not rivals.

A pools both maps by area to as many cells as UHKD keeps coefficients; B to the smaller of the two grids. Standardisation,
channel reduction, projector, levels and soft targets are UHKD's, so a difference in accuracy is the representation's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from uhkd.alignment import FAMForm
from uhkd.data import Batch
from uhkd.methods.base import NOTHING, Distiller, Needs, teacher_shapes
from uhkd.methods.kd import soft_target_loss
from uhkd.methods.matching import LevelMatching
from uhkd.spectral import SpectralTarget, Standardise, match_levels
from uhkd.taps import Shapes, Signals


class TwinA(Distiller):
    """Spatial twin A: both maps area-pooled to (2*radius+1) cells an axis, then matched as UHKD matches coefficients.

    Args: as `UHKD`, without the options that only a spectrum has.
    """

    default_weights: ClassVar = {"kl": 1.0, "features": 10.0}
    full_grid = False

    def __init__(
        self,
        shapes: Shapes,
        weights: Mapping[str, float] | None = None,
        *,
        radius: int = 1,
        standardise: Standardise = "coefficient",
        channels: int | None = None,
        fam: FAMForm = "linear",
        hidden: int | None = None,
        level_weights: tuple[float, ...] | None = None,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(weights)
        student, teacher = shapes.student.maps, teacher_shapes(shapes, "twin_b" if self.full_grid else "twin_a").maps
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        logits = frozenset({"logits"}) if self.wants("kl") else NOTHING
        self.needs = Needs(logits, logits)
        if self.wants("features"):
            levels = match_levels(student, teacher, radius, "area")
            if self.full_grid:
                smaller = [tuple(map(min, student[v.student][1:], teacher[v.teacher][1:])) for v in levels]
                levels = tuple(replace(v, size=(h, w)) for v, (h, w) in zip(levels, smaller, strict=True))
            target = SpectralTarget(levels, standardise, channels)
            self.match = LevelMatching(student, teacher, target, fam=fam, hidden=hidden, level_weights=level_weights)
            self.needs = Needs(logits | {"maps"}, logits | {"spectra"}, target)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """{"kl": soft targets, "features": pooled MSE over all levels}."""
        terms = {}
        if self.wants("kl"):
            assert student.logits is not None and teacher.logits is not None
            terms["kl"] = soft_target_loss(student.logits, teacher.logits, self.temperature)
        if self.wants("features"):
            assert student.maps is not None and teacher.spectra is not None
            terms["features"] = self.match(student.maps, teacher.spectra)
        return terms


class TwinB(TwinA):
    """Spatial twin B: as twin A, on the smaller of the two full grids of each level (`radius` is not used)."""

    full_grid = True
