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
    """Return Euclidean distances between images, divided by their mean over all pairs; squares are at least 1e-12."""
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
    distances = distances * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return distances / (distances.sum() / (len(x) * (len(x) - 1)))


def angles(x: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    """Return the cosine [i, j, k] of the angle at image i between images j and k; 0 if j or k is i.

    The gradient is huge where two student embeddings are bitwise equal and the teacher's are not, as in the authors' code.
    """
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def distance_loss(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """Return the smooth L1 error of `relative_distances` (section 3.2.1)."""
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


def angle_loss(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """Return the smooth L1 error of `angles` (section 3.2.2)."""
    return F.smooth_l1_loss(angles(student), angles(teacher))


class RKD(DistillationLoss):
    """Match the geometry of a batch: smooth L1 of relative distances ("distance") and of angles ("angle").

    Weights 25 and 50 are those of the authors' script for classification and of common comparison tables. Like those, this
    loss neither normalises embeddings first nor adds soft targets. It has no trained layers, and both widths may differ. The
    angles need B^2 D + B^3 numbers for B images.

    Raises:
        UhkdError: for a network without embedding; in training, for a single image.
    """

    default_weights: ClassVar = {"distance": 25.0, "angle": 50.0}
    main_term = "angle"

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)
        embedding_widths(shapes, "rkd")
        if any(map(self.is_active, self.weights)):
            self.needs = Requirements(frozenset({"embedding"}), frozenset({"embedding"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the active terms of "distance" and "angle"."""
        if not self.needs.student:
            return {}
        assert student.embedding is not None and teacher.embedding is not None
        x, y = (all_gather_batch(at_least_float32(embedding)) for embedding in (student.embedding, teacher.embedding))
        require_batch(len(x), "rkd", "relates the images of a batch")
        losses = {"distance": distance_loss, "angle": angle_loss}
        with torch.autocast(x.device.type, enabled=False):
            return {term: loss(x, y) for term, loss in losses.items() if self.is_active(term)}
