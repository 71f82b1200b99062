"""RSD: redundancy suppression distillation (Zhang et al. 2025, arXiv 2507.21844)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss, Requirements, check_positive, embedding_widths, require_batch
from uhkd.methods.correlation import redundancy


class RSD(DistillationLoss):
    """Correlate the features of both embeddings one to one, and decorrelate all other pairs of features (`redundancy`).

    As in the authors' code, the student's embedding goes through Linear(D_s, 2 D_s), BatchNorm, GELU, Linear(2 D_s, D_t)
    without biases; weight 0.1, and no soft targets (`rsd+kd` adds them).

    Args:
        kappa: weight of the entries off the diagonal, at least 0.
        expansion: width of the hidden layer as a multiple of the student's embedding, at least 1.

    Raises:
        UhkdError: for settings out of range, or a network without embedding; in training, for a single image.
    """

    default_weights: ClassVar = {"redundancy": 0.1}
    main_term = "redundancy"
    tunable = ("kappa", (0.003, 0.03))

    def __init__(
        self, shapes: PairShapes, weights: Mapping[str, float] | None = None, *, kappa: float = 0.01, expansion: int = 2
    ) -> None:
        super().__init__(weights)
        if kappa < 0:
            raise UhkdError(f"kappa must be at least 0, got {kappa}")
        check_positive(expansion, "expansion")
        self.kappa = kappa
        student, teacher = embedding_widths(shapes, "rsd")
        if self.is_active("redundancy"):
            hidden = expansion * student
            layers = (nn.Linear(student, hidden, bias=False), nn.Linear(hidden, teacher, bias=False))
            for layer in layers:
                nn.init.trunc_normal_(layer.weight, std=0.02)
            self.project = nn.Sequential(layers[0], nn.BatchNorm1d(hidden), nn.GELU(), layers[1])
            self.needs = Requirements(frozenset({"embedding"}), frozenset({"embedding"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return {"redundancy": `redundancy` of the projected student embedding and the teacher's}."""
        if not self.is_active("redundancy"):
            return {}
        assert student.embedding is not None and teacher.embedding is not None
        embeddings = all_gather_batch(student.embedding), all_gather_batch(teacher.embedding)
        require_batch(len(embeddings[0]), "rsd", "correlates over the images of a batch")
        return {"redundancy": redundancy(self.project(embeddings[0]), embeddings[1], self.kappa)}
