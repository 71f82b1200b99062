"""The module that is trained: the student and its distillers in one, whose forward returns the raw loss terms."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.methods import Distiller, place_of
from uhkd.taps import Signals, TappedModel


class Learner(nn.Module):
    """Student and distillers as one module: what Fabric wraps (DDP sees every parameter) and compile compiles.

    Args:
        student: the network that is kept.
        distillers: by method name; thrown away after training.
        label_smoothing: of the cross-entropy, 0..1.
    """

    def __init__(self, student: TappedModel, distillers: nn.ModuleDict, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.student, self.distillers, self.label_smoothing = student, distillers, label_smoothing
        needs = [d.needs for d in distillers.values() if isinstance(d, Distiller)]
        self.student_needs = frozenset().union(*(n.student for n in needs))
        self.teacher_needs = frozenset().union(*(n.teacher for n in needs))

    def forward(self, batch: Batch, teacher: Signals) -> dict[str, Tensor]:
        """Raw named terms, each a scalar: "ce" when the batch has targets, "method.term" of each distiller ("2:method.term": of a
        second teacher's)."""
        student = self.student(batch.image, self.student_needs | ({"logits"} if batch.target is not None else set()))
        terms, heard = {}, (teacher, *teacher.others)
        if batch.target is not None:
            terms["ce"] = F.cross_entropy(student.logits.float(), batch.target, label_smoothing=self.label_smoothing)
        for name, distiller in self.distillers.items():
            terms |= {
                f"{name}.{term}": value for term, value in distiller(student, heard[place_of(name)], batch).items()
            }
        return terms

    def no_weight_decay(self) -> set[str]:
        """Parameters that the student's own architecture exempts from weight decay (position embeddings and the like)."""
        own = getattr(self.student.module, "no_weight_decay", set)
        return {f"student.module.{name}" for name in own()}

    def weights(self, ce: float = 1.0) -> dict[str, float]:
        """Weight of every term by full name."""
        weights = {"ce": ce}
        for name, distiller in self.distillers.items():
            assert isinstance(distiller, Distiller)
            weights |= {f"{name}.{term}": w for term, w in distiller.weights.items()}
        return weights


def weigh(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss, a scalar: sum of weight * term, each a scalar by name. The one place where weights are applied.

    Raises:
        ValueError: when there is no term to learn from.
    """
    weighted = [weights[name] * value for name, value in terms.items() if weights[name]]
    if not weighted:
        raise ValueError("nothing to learn from: no labels, and no method with a term of weight above 0")
    return torch.stack(weighted).sum()
