"""DKD: decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679, Eq. 6 and 7).

Optionally with standardised logits (Sun et al. 2024, arXiv 2403.01427, Algorithm 1).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import (
    DistillationLoss,
    Requirements,
    at_least_float32,
    check_positive,
    hard_labels,
    teacher_shapes,
    z_scores,
)


def decoupled_losses(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], label: Int[Tensor, " b"], temperature: float = 1.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (TCKD, NCKD), each T^2 * KL(teacher || student), mean over the batch, in at least float32.

    TCKD compares the probabilities of the target class and of all other classes together; NCKD compares the distributions
    over the other classes. Both are zero for equal softened distributions. The authors' code takes logarithms of sums of
    probabilities and masks the target by -1000. The values here are the same, but finite for all finite logits.
    """
    target = label[:, None]
    columns = torch.arange(student.shape[1] - 1, device=student.device)
    others = columns + (columns >= target)  # (B,K-1): all classes except the target
    binary, rest = [], []
    for logits in (student, teacher):
        z = at_least_float32(logits) / temperature
        remaining = z.gather(1, others)
        two = torch.cat((z.gather(1, target), remaining.logsumexp(1, keepdim=True)), 1)
        binary.append(F.log_softmax(two, 1))
        rest.append(F.log_softmax(remaining, 1))
    tckd, nckd = (F.kl_div(*logs, reduction="batchmean", log_target=True) * temperature**2 for logs in (binary, rest))
    return tckd, nckd


class DKD(DistillationLoss):
    """Match the target class and the other classes with separate weights ("tckd": alpha, "nckd": beta).

    Weights 1 and 2 and T = 1 are the defaults of OFA-KD's code. The paper tunes beta for each pair (up to 8) at T = 4 and
    warms the weight up over the first epochs; this loss has no warm-up. The target of a mixed image is its largest share.

    Args:
        temperature: T > 0.
        standardise_logits: compare Z-scores of each image's logits (`z_scores`, over all classes including the target)
            instead of the logits.

    Raises:
        UhkdError: for a temperature of 0 or below; in training, for images without labels.
    """

    default_weights: ClassVar = {"tckd": 1.0, "nckd": 2.0}
    main_term = "nckd"
    is_logit_method = True
    needs_labels = True
    tunable = ("temperature", (2.0, 4.0))

    def __init__(
        self,
        shapes: PairShapes,
        weights: Mapping[str, float] | None = None,
        *,
        temperature: float = 1.0,
        standardise_logits: bool = False,
    ) -> None:
        super().__init__(weights)
        teacher_shapes(shapes, "dkd")
        check_positive(temperature, "temperature")
        self.temperature = temperature
        self.standardise_logits = standardise_logits
        if any(map(self.is_active, self.weights)):
            self.needs = Requirements(frozenset({"logits"}), frozenset({"logits"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the active terms of "tckd" and "nckd"."""
        if not self.needs.student:
            return {}
        assert student.logits is not None and teacher.logits is not None
        logits = student.logits, teacher.logits
        if self.standardise_logits:
            logits = z_scores(logits[0]), z_scores(logits[1])
        losses = decoupled_losses(*logits, hard_labels(batch, "dkd"), self.temperature)
        return {term: loss for term, loss in zip(("tckd", "nckd"), losses, strict=True) if self.is_active(term)}
