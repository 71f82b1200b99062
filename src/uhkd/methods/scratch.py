"""No distillation: the baseline every other method is measured against."""

from collections.abc import Mapping

from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss


class Scratch(DistillationLoss):
    """Cross-entropy on the labels alone (added by the trainer); the teacher is never run."""

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """No terms."""
        return {}
