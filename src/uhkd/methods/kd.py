"""KD: soft targets (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2).

Optionally with standardised logits (Sun et al. 2024, arXiv 2403.01427, Algorithm 1).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import (
    NOTHING,
    DistillationLoss,
    Requirements,
    at_least_float32,
    check_positive,
    teacher_shapes,
    z_scores,
)


def soft_target_loss(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, in at least float32.

    It is zero exactly when both distributions are equal. The factor T^2 makes the size of the gradient independent of T.
    """
    log_p, log_q = (F.log_softmax(at_least_float32(x) / temperature, -1) for x in (student, teacher))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


class SoftTargetLoss(DistillationLoss):
    """Base class of KD and of methods that include soft targets: one term "kl" at temperature T > 0.

    Raises:
        UhkdError: for a temperature of 0 or below.
    """

    def __init__(self, weights: Mapping[str, float] | None, temperature: float) -> None:
        super().__init__(weights)
        check_positive(temperature, "temperature")
        self.temperature = temperature
        self.logits = frozenset({"logits"}) if self.is_active("kl") else NOTHING
        self.needs = Requirements(self.logits, self.logits)

    def soft_targets(self, student: NetworkOutput, teacher: NetworkOutput) -> dict[str, Tensor]:
        """Return {"kl": T^2 KL(teacher || student)}, or {} if its weight is 0."""
        if not self.is_active("kl"):
            return {}
        assert student.logits is not None and teacher.logits is not None
        return {"kl": soft_target_loss(student.logits, teacher.logits, self.temperature)}


class KD(SoftTargetLoss):
    """Match the teacher's softened class probabilities.

    Args:
        temperature: T > 0.
        standardise_logits: compare Z-scores of each image's logits (`z_scores`) instead of the logits.
    """

    default_weights: ClassVar = {"kl": 1.0}
    main_term = "kl"
    is_logit_method = True
    tunable = ("temperature", (1.0, 2.0, 8.0))

    def __init__(
        self,
        shapes: PairShapes,
        weights: Mapping[str, float] | None = None,
        *,
        temperature: float = 4.0,
        standardise_logits: bool = False,
    ) -> None:
        super().__init__(weights, temperature)
        teacher_shapes(shapes, "kd")
        self.standardise_logits = standardise_logits

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return {"kl": T^2 KL(teacher || student)}."""
        if self.standardise_logits and self.is_active("kl"):
            assert student.logits is not None and teacher.logits is not None
            student = student._replace(logits=z_scores(student.logits))
            teacher = teacher._replace(logits=z_scores(teacher.logits))
        return self.soft_targets(student, teacher)
