"""CC: correlation congruence (Peng et al. 2019, arXiv 1904.01802), as the field's tables run it."""

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import (
    DistillationLoss,
    Requirements,
    at_least_float32,
    check_positive,
    embedding_widths,
    require_batch,
)


def neighbour_correlation(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean over neighbours b, b+1 in the batch of <d_b, d_(b+1)>, d = |student - teacher|. Zero for equal embeddings.

    Raises:
        UhkdError: for a single image.
    """
    require_batch(len(student), "cc", "relates neighbours in a batch")
    gap = (at_least_float32(student) - at_least_float32(teacher)).abs()
    return (gap[:-1] * gap[1:]).sum(1).mean()


class CC(DistillationLoss):
    """Both embeddings, each through a learned linear map, agree in the sense of `neighbour_correlation`.

    This is what RepDistiller and OFA-KD run under the name, with weight 0.02; the paper's Taylor expansion of a kernel between
    images is another loss.

    Args:
        dim: width of the shared space, at least 1.

    Raises:
        UhkdError: for a dim below 1, or a side without embedding; in training, for a single image.
    """

    default_weights: ClassVar = {"correlation": 0.02}
    main_term = "correlation"
    tunable = ("dim", (64, 256))

    def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None, *, dim: int = 128) -> None:
        super().__init__(weights)
        check_positive(dim, "dim")
        student, teacher = embedding_widths(shapes, "cc")
        if self.is_active("correlation"):
            self.embed_student, self.embed_teacher = nn.Linear(student, dim), nn.Linear(teacher, dim)
            self.needs = Requirements(frozenset({"embedding"}), frozenset({"embedding"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """{"correlation": see `neighbour_correlation`}."""
        if not self.is_active("correlation"):
            return {}
        assert student.embedding is not None and teacher.embedding is not None
        ours, theirs = all_gather_batch(student.embedding), all_gather_batch(teacher.embedding)
        ours, theirs = self.embed_student(ours), self.embed_teacher(theirs)
        return {"correlation": neighbour_correlation(ours, theirs)}
