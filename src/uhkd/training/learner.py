"""The module that is trained: the student and its distillers in one, whose forward returns the raw loss terms."""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, NetworkOutput
from uhkd.methods import DistillationLoss, teacher_index
from uhkd.training.balance import Balance


class StudentWithLosses(nn.Module):
    """Student and distillers as one module: what Fabric wraps (DDP sees every parameter) and compile compiles.

    Args:
        student: the network that is kept.
        distillers: by method name; thrown away after training.
        label_smoothing: of the cross-entropy, 0..1.
        balance: how much the teacher's terms count over the training; None: by constant weights.
    """

    def __init__(
        self,
        student: FeatureExtractor,
        distillers: nn.ModuleDict,
        label_smoothing: float = 0.0,
        balance: Balance | None = None,
    ) -> None:
        super().__init__()
        self.student, self.distillers, self.label_smoothing, self.balance = (
            student,
            distillers,
            label_smoothing,
            balance,
        )
        needs = [d.needs for d in distillers.values() if isinstance(d, DistillationLoss)]
        self.student_needs = frozenset().union(*(n.student for n in needs))
        self.teacher_needs = frozenset().union(*(n.teacher for n in needs))
        if balance is not None and any(balance.reads_logits_of(teacher_index(name)) for name in distillers):
            self.teacher_needs |= {"logits"}
        self._closed: set[str] = set()

    def forward(self, batch: Batch, teacher: NetworkOutput) -> dict[str, Tensor]:
        """Raw named terms, each a scalar: "ce" when the batch has targets, "method.term" of each distiller ("2:method.term": of a
        second teacher's)."""
        student = self.student(batch.image, self.student_needs | ({"logits"} if batch.target is not None else set()))
        terms, outputs = {}, (teacher, *teacher.others)
        if batch.target is not None:
            terms["ce"] = F.cross_entropy(student.logits.float(), batch.target, label_smoothing=self.label_smoothing)
        if self.training and self.balance is not None:
            self.balance.observe(student.logits, [one.logits for one in outputs], batch.target)
        for name, distiller in self.distillers.items():
            if name in self._closed:
                continue
            terms |= {
                f"{name}.{term}": value
                for term, value in distiller(student, outputs[teacher_index(name)], batch).items()
            }
        return terms

    def close(self, rows: Collection[int]) -> set[int]:
        """Switch off the terms of groups that a balance closed; return the places of teachers that are no longer needed.

        A term's work is skipped from then on, and so is a method whose last term it was; its parameters are frozen.
        """
        assert self.balance is not None
        for name, distiller in self.distillers.items():
            assert isinstance(distiller, DistillationLoss)
            own = {
                term: 0.0 if self.balance.rows[f"{name}.{term}"] in rows else w for term, w in distiller.weights.items()
            }
            distiller.weights = own
            if not any(own.values()):
                self._closed.add(name)
                distiller.requires_grad_(False)
        places = {teacher_index(name) for name in self.distillers}
        needed = {teacher_index(name) for name in self.distillers if name not in self._closed}
        if not needed:
            self.student_needs, self.teacher_needs = frozenset(), frozenset()
        return places - needed

    def no_weight_decay(self) -> set[str]:
        """Parameters that the student's own architecture exempts from weight decay (position embeddings and the like)."""
        own = getattr(self.student.module, "no_weight_decay", set)
        return {f"student.module.{name}" for name in own()}

    def weights(self, ce: float = 1.0) -> dict[str, float]:
        """Weight of every term by full name."""
        weights = {"ce": ce}
        for name, distiller in self.distillers.items():
            assert isinstance(distiller, DistillationLoss)
            weights |= {f"{name}.{term}": w for term, w in distiller.weights.items()}
        return weights


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float], balance: Balance | None = None) -> Tensor:
    """The loss, a scalar: sum of weight * term, each a scalar by name. The one place where weights are applied.

    balance: changes the summands, see `Balance.balanced`.

    Raises:
        UhkdError: when there is no term to learn from.
    """
    weighted = {name: weights[name] * value for name, value in terms.items() if weights[name]}
    if not weighted:
        raise UhkdError("nothing to learn from: no labels, and no method with a term of weight above 0")
    summands = torch.stack(list(weighted.values()))
    return (summands if balance is None else balance.balanced(list(weighted), summands)).sum()
