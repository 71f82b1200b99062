"""Pairs of feature maps on a common grid, for methods that compare raw feature maps."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods.base import teacher_shapes
from uhkd.spectral import Maps, match_by_depth


def match_feature_maps(shapes: PairShapes, method: str) -> tuple[list[tuple[int, int]], Maps, Maps]:
    """Return pairs (student map, teacher map) of indices at equal relative depth, and the (C, H, W) of both networks' maps.

    Raises:
        UhkdError: without a teacher, or for a network without feature maps.
    """
    student, teacher = shapes.student.maps, teacher_shapes(shapes, method).maps
    if not student or not teacher:
        raise UhkdError(f"{method} compares feature maps, and the {'teacher' if student else 'student'} has none")
    return match_by_depth(len(student), len(teacher)), student, teacher


def pool_to_common_grid(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b d i j"]
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b d y x"]]:
    """Area-pool each axis of both maps to the smaller of its two sizes; equal grids are unchanged."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return pooled(a, size), pooled(b, size)


def pooled(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c y x"]:
    """Return the map area-pooled to `size`."""
    if x.shape[2:] == size:
        return x
    kernel, rest = zip(*(divmod(n, m) for n, m in zip(x.shape[2:], size, strict=True)), strict=True)
    # where cells do not overlap, avg_pool2d gives the same numbers, and its backward pass is deterministic on a GPU
    return F.adaptive_avg_pool2d(x, size) if any(rest) else F.avg_pool2d(x, kernel)
