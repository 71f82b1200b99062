"""FitNet: hints from intermediate features (Romero et al. 2015, arXiv 1412.6550, Eq. 3), for heterogeneous pairs."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss, Requirements, at_least_float32
from uhkd.methods.feature_pairs import match_feature_maps, pool_to_common_grid


class FitNet(DistillationLoss):
    """Regress the teacher's maps from the student's by 1x1 convolutions: sum over levels of the mean squared error.

    As in OFA-KD's code: all matched levels, trained jointly with the labels (the paper: one hint layer, trained first), weight
    1, convolutions without bias, no soft targets (`fitnet+kd` adds them). That code accepts CNNs only; here tokens are maps
    on their grid, and the larger of two grids is pooled to the smaller.

    Raises:
        UhkdError: for a network without feature maps.
    """

    default_weights: ClassVar = {"features": 1.0}
    main_term = "features"

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)
        self.pairs, student, teacher = match_feature_maps(shapes, "fitnet")
        if self.is_active("features"):
            mixes = [nn.Conv2d(student[s][0], teacher[t][0], 1, bias=False) for s, t in self.pairs]
            for mix in mixes:
                nn.init.kaiming_normal_(mix.weight, mode="fan_out", nonlinearity="relu")
            self.mixes = nn.ModuleList(mixes)
            self.needs = Requirements(frozenset({"maps"}), frozenset({"maps"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return {"features": sum over levels of MSE(mix(student map), teacher map)}."""
        if not self.is_active("features"):
            return {}
        assert student.maps is not None and teacher.maps is not None
        errors = []
        for mix, (s, t) in zip(self.mixes, self.pairs, strict=True):
            # pooling and mixing commute, and mixing is cheaper on the smaller grid
            student_map, teacher_map = pool_to_common_grid(student.maps[s], teacher.maps[t])
            errors.append(F.mse_loss(at_least_float32(mix(student_map)), at_least_float32(teacher_map)))
        return {"features": torch.stack(errors).sum()}
