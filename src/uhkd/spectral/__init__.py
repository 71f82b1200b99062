"""Fourier coefficients of feature maps: the Feature Transformation Module (FTM) and its pure functions.

Basis functions are sampled at cell centres, `y_h = (h + 1/2) / H`, and coefficients are divided by the number of cells, so
that grids of different sizes that sample the same scene give the same numbers. The basis is real and orthonormal, per axis
`1, sqrt2 cos 1, sqrt2 sin 1, sqrt2 cos 2, ...`: coefficients of a lower radius are a prefix of those of a higher one, and the
sum of squares is the mean energy of the band-limited map. No complex tensors are used.
"""

from uhkd.spectral.fourier import (
    area_basis,
    as_double,
    complex_halfplane,
    fourier_basis,
    halfplane_frequencies,
    max_radius,
    project,
    rotate,
    spectrum,
)
from uhkd.spectral.ftm import FTM
from uhkd.spectral.matching import (
    Channels,
    LevelPair,
    Maps,
    SpectralTarget,
    Standardise,
    crop_indices,
    ftm_shapes,
    match_by_depth,
    match_levels,
    resolve_channels,
    teacher_levels,
)
from uhkd.spectral.transform import Form, SpectralTransform, radial_frequencies

__all__ = [
    "FTM",
    "Channels",
    "Form",
    "LevelPair",
    "Maps",
    "SpectralTarget",
    "SpectralTransform",
    "Standardise",
    "area_basis",
    "as_double",
    "complex_halfplane",
    "crop_indices",
    "fourier_basis",
    "ftm_shapes",
    "halfplane_frequencies",
    "match_by_depth",
    "match_levels",
    "max_radius",
    "project",
    "radial_frequencies",
    "resolve_channels",
    "rotate",
    "spectrum",
    "teacher_levels",
]
