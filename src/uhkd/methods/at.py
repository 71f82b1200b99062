"""AT: attention transfer (Zagoruyko, Komodakis 2017, arXiv 1612.03928, section 3.1, Eq. 2)."""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss, Requirements, at_least_float32, check_positive
from uhkd.methods.feature_pairs import match_feature_maps, pool_to_common_grid


def attention(x: Float[Tensor, "b c h w"], power: int = 2) -> Float[Tensor, "b n"]:
    """Return the mean over channels of |x|^power, scaled to Euclidean length 1 for each image (0 for a map of zeros)."""
    return F.normalize(at_least_float32(x).abs().pow(power).mean(1).flatten(1))


def attention_loss(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b d i j"], power: int = 2
) -> Float[Tensor, ""]:
    """Return the mean squared difference of both attention vectors, on the smaller of the two grids."""
    student, teacher = pool_to_common_grid(student, teacher)
    return F.mse_loss(attention(student, power), attention(teacher, power))


class AT(DistillationLoss):
    """Match spatial attention: sum over levels of the mean squared difference of attention vectors.

    As in commonly used code: the mean over images and cells (Eq. 2 has a norm) and weight 1000. The larger grid is pooled
    to the smaller one first. A level with one cell only shows whether its map is zero.

    Args:
        power: exponent p >= 1 of the activations.

    Raises:
        UhkdError: for a power below 1, or if every matched level has one cell.
    """

    default_weights: ClassVar = {"attention": 1000.0}
    main_term = "attention"
    tunable = ("power", (1, 4))

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None, *, power: int = 2) -> None:
        super().__init__(weights)
        check_positive(power, "power")
        self.power = power
        self.pairs, student, teacher = match_feature_maps(shapes, "at")
        if all(min(student[s][i], teacher[t][i]) == 1 for s, t in self.pairs for i in (1, 2)):
            raise UhkdError(
                "at compares spatial attention, and every matched level has one cell; use larger images, or name shallower "
                "layers (student_levels, teacher_levels)"
            )
        if self.is_active("attention"):
            self.needs = Requirements(frozenset({"maps"}), frozenset({"maps"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return {"attention": sum over levels of mean (a(student) - a(teacher))^2}."""
        if not self.is_active("attention"):
            return {}
        assert student.maps is not None and teacher.maps is not None
        total = batch.image.new_zeros(())
        for s, t in self.pairs:
            total = total + attention_loss(student.maps[s], teacher.maps[t], self.power)
        return {"attention": total}
