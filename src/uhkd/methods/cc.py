"""CC: correlation congruence (Peng et al. 2019, arXiv 1904.01802), in the form that comparison tables use."""

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
    """Return the mean over neighbours b, b+1 in the batch of <d_b, d_(b+1)>, d = |student - teacher|: 0 for equal embeddings.

    Raises:
        UhkdError: for a single image.
    """
    require_batch(len(student), "cc", "relates neighbours in a batch")
    difference = (at_least_float32(student) - at_least_float32(teacher)).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


class CC(DistillationLoss):
    """Project both embeddings by learned linear maps to one space and minimise `neighbour_correlation`.

    RepDistiller and OFA-KD use this loss under the name CC, with weight 0.02. The paper has another loss, a Taylor expansion
    of a kernel between images.

    Args:
        dim: width of the shared space, at least 1.

    Raises:
        UhkdError: for a dim below 1, or a network without embedding; in training, for a single image.
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
        """Return {"correlation": `neighbour_correlation` of the projected embeddings}."""
        if not self.is_active("correlation"):
            return {}
        assert student.embedding is not None and teacher.embedding is not None
        embeddings = all_gather_batch(student.embedding), all_gather_batch(teacher.embedding)
        return {
            "correlation": neighbour_correlation(self.embed_student(embeddings[0]), self.embed_teacher(embeddings[1]))
        }
