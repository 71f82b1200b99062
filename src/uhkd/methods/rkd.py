"""RKD: relational knowledge distillation (Park et al. 2019, arXiv 1904.05068, sections 3.2.1 and 3.2.2)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss, Requirements, at_least_float32, embedding_widths, require_batch


def relative_distances(x: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Euclidean distances between images, divided by their mean over all pairs; squares below 1e-12 count as that."""
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
    distances = distances * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return distances / (distances.sum() / (len(x) * (len(x) - 1)))


def angles(x: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    """Cosines of the angle at image i between images j and k; 0 where j or k is i.

    Where two embeddings are equal to the bit and the teacher's are not, the gradient is huge, as in the authors' code.
    """
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


class RKD(DistillationLoss):
    """The geometry of a batch: smooth L1 between relative distances ("distance") and between angles ("angle").

    Weights 25 and 50 are those of the authors' script for classification and of the field's tables (which, as here, neither
    normalise embeddings first nor add soft targets). Needs no layers, and no equal widths. The angles take B^2 D + B^3
    numbers for B images.

    Raises:
        UhkdError: for a side without embedding; in training, for a single image.
    """

    default_weights: ClassVar = {"distance": 25.0, "angle": 50.0}
    main_term = "angle"

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)
        embedding_widths(shapes, "rkd")
        if any(map(self.is_active, self.weights)):
            self.needs = Requirements(frozenset({"embedding"}), frozenset({"embedding"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """{"distance", "angle"}, those whose weight is not 0."""
        if not self.needs.student:
            return {}
        assert student.embedding is not None and teacher.embedding is not None
        ours, theirs = (
            all_gather_batch(at_least_float32(student.embedding)),
            all_gather_batch(at_least_float32(teacher.embedding)),
        )
        require_batch(len(ours), "rkd", "relates the images of a batch")
        terms = {}
        with torch.autocast(ours.device.type, enabled=False):
            for term, relation in (("distance", relative_distances), ("angle", angles)):
                if self.is_active(term):
                    terms[term] = F.smooth_l1_loss(relation(ours), relation(theirs))
        return terms
