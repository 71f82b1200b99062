"""Taps of both networks that meet, and one grid for both: what methods on raw feature maps share."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods.base import teacher_shapes
from uhkd.spectral import Maps, match_by_depth


def match_feature_maps(shapes: PairShapes, method: str) -> tuple[list[tuple[int, int]], Maps, Maps]:
    """Pairs (student tap, teacher tap) at equal relative depth, and both sides' (C, H, W).

    Raises:
        UhkdError: when there is no teacher, or a side has no taps.
    """
    student, teacher = shapes.student.maps, teacher_shapes(shapes, method).maps
    if not student or not teacher:
        raise UhkdError(
            f"{method} compares feature maps, and found no taps in the {'teacher' if student else 'student'}"
        )
    return match_by_depth(len(student), len(teacher)), student, teacher


def pool_to_common_grid(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b d i j"]
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b d y x"]]:
    """Both maps area-pooled, each axis to the smaller of its two sizes; equal grids stay as they are."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return pooled(a, size), pooled(b, size)


def pooled(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c y x"]:
    """Area-pooled to `size`."""
    if x.shape[2:] == size:
        return x
    kernel, rest = zip(*(divmod(n, m) for n, m in zip(x.shape[2:], size, strict=True)), strict=True)
    # the same numbers wherever cells do not overlap, by an operation whose backward pass repeats to the bit on a GPU
    return F.adaptive_avg_pool2d(x, size) if any(rest) else F.avg_pool2d(x, kernel)
