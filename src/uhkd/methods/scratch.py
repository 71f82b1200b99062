"""No distillation: the baseline for every other method."""

from collections.abc import Mapping

from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss


class Scratch(DistillationLoss):
    """No loss terms: the student learns from the trainer's cross-entropy on the labels, and the teacher is never run."""

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return no terms."""
        return {}
