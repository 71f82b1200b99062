"""DIST: knowledge distillation from a stronger teacher (Huang et al. 2022, arXiv 2205.10536, Eq. 8 to 10)."""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.data import Batch
from uhkd.methods.base import Distiller, Needs, check_positive, refuse_single, teacher_shapes, wide
from uhkd.taps import Shapes, Signals


def correlation_distance(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """1 - mean over rows of Pearson's correlation: from 0, where every row of `a` is a rising linear image of `b`'s, to 2.

    The authors' 1e-8 in the denominator makes a constant row uncorrelated, and a nearly constant one less correlated than
    it is: for a thousand classes and sharp probabilities, columns of equal inputs stay clearly above 0.
    """
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()


class DIST(Distiller):
    """Correlation of class probabilities instead of their equality.

    "inter": among the classes of each image (rows of the B x K probabilities, Eq. 8); "intra": among the images for each class
    (columns, Eq. 9); both times T^2 as in OFA-KD's code (which runs T = 1).

    Args:
        temperature: T > 0.

    Raises:
        ValueError: for a temperature of 0 or below; in training, "intra" of a single image.
    """

    default_weights: ClassVar = {"inter": 1.0, "intra": 1.0}
    main_term = "inter"
    imitates_logits = True
    knob = ("temperature", (2.0, 4.0))

    def __init__(self, shapes: Shapes, weights: Mapping[str, float] | None = None, *, temperature: float = 1.0) -> None:
        super().__init__(weights)
        teacher_shapes(shapes, "dist")
        check_positive(temperature, "temperature")
        self.temperature = temperature
        if any(map(self.wants, self.weights)):
            self.needs = Needs(frozenset({"logits"}), frozenset({"logits"}))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """{"inter", "intra"}, those whose weight is not 0."""
        if not self.needs.student:
            return {}
        assert student.logits is not None and teacher.logits is not None
        p, q = (F.softmax(wide(x) / self.temperature, 1) for x in (student.logits, teacher.logits))
        terms = {}
        if self.wants("inter"):
            terms["inter"] = self.temperature**2 * correlation_distance(p, q)
        if self.wants("intra"):
            refuse_single(len(p), "dist", "correlates images of a batch")
            terms["intra"] = self.temperature**2 * correlation_distance(p.T, q.T)
        return terms
