"""No distillation: the baseline every other method is measured against."""

from collections.abc import Mapping

from torch import Tensor

from uhkd.data import Batch
from uhkd.features import Shapes, Signals
from uhkd.methods.base import Distiller


class Scratch(Distiller):
    """Cross-entropy on the labels alone (added by the engine); the teacher is never run."""

    def __init__(self, shapes: Shapes, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """No terms."""
        return {}
