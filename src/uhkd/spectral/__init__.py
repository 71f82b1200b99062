"""Fourier representations of feature maps: the Feature Transformation Module (FTM) and its pure functions.

Coefficients are taken at *cell centres*, `y_h = (h + 1/2) / H`, and divided by the number of cells, so that grids of any
two sizes that sample the same scene give the same numbers. They are laid out in a real orthonormal basis: per axis
`1, sqrt2 cos 1, sqrt2 sin 1, sqrt2 cos 2, ...`, a lower radius being a prefix of a higher one. A sum of squares is then the
mean energy of the band-limited map, and no complex tensor ever appears.
"""

from uhkd.spectral.fourier import (
    area_basis,
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
