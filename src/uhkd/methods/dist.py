"""DIST: knowledge distillation from a stronger teacher (Huang et al. 2022, arXiv 2205.10536, Eq. 8 to 10)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss, Requirements, check_positive, require_batch, teacher_shapes
from uhkd.methods.correlation import class_distances


class DIST(DistillationLoss):
    """Match correlations of class probabilities instead of their values.

    "inter": over the classes of each image (rows of the B x K probabilities, Eq. 8); "intra": over the images for each class
    (columns, Eq. 9); both times T^2 as in OFA-KD's code (which uses T = 1).

    Args:
        temperature: T > 0.

    Raises:
        UhkdError: for a temperature of 0 or below; in training, for "intra" of a single image.
    """

    default_weights: ClassVar = {"inter": 1.0, "intra": 1.0}
    main_term = "inter"
    is_logit_method = True
    tunable = ("temperature", (2.0, 4.0))

    def __init__(
        self, shapes: PairShapes, weights: Mapping[str, float] | None = None, *, temperature: float = 1.0
    ) -> None:
        super().__init__(weights)
        teacher_shapes(shapes, "dist")
        check_positive(temperature, "temperature")
        self.temperature = temperature
        if any(map(self.is_active, self.weights)):
            self.needs = Requirements(frozenset({"logits"}), frozenset({"logits"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the active terms of "inter" and "intra"."""
        if not self.needs.student:
            return {}
        assert student.logits is not None and teacher.logits is not None
        logits = all_gather_batch(student.logits), all_gather_batch(teacher.logits)
        if self.is_active("intra"):
            require_batch(len(logits[0]), "dist", "correlates images of a batch")
        return class_distances(*logits, self.temperature, filter(self.is_active, ("inter", "intra")))
