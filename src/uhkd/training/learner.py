"""The student and its loss terms as one module: `forward` computes the raw terms, `weighted_sum` the loss."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, NetworkOutput
from uhkd.methods import DistillationLoss
from uhkd.training.balance import Balance
from uhkd.training.class_balance import cross_entropy


class StudentWithLosses(nn.Module):
    """Student and distillation losses as one module: Fabric wraps it (DDP sees every parameter) and `compile` compiles it.

    Args:
        student: the network to train.
        distillers: the losses, not used after training. Their names are parts of the names of terms and of tensors in
            checkpoints: "uhkd", or "2:uhkd" for the second of several teachers.
        label_smoothing: of the cross-entropy, 0..1.
        balance: changes the weights of the teacher's terms during training; None: constant weights.

    Attributes:
        class_weights: weights (K,) of the classes in the cross-entropy; None: equal.
        contiguous: whether the student gets its images in the contiguous format, see `choose_memory_format`.

    Raises:
        UhkdError: for a student without trainable parameters.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        student: FeatureExtractor,
        distillers: nn.ModuleDict,
        label_smoothing: float = 0.0,
        balance: Balance | None = None,
    ) -> None:
        super().__init__()
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise UhkdError(
                f"the student {type(student.module).__name__} has no trainable parameters (requires_grad is False for all, or "
                "there are none): call requires_grad_(True) on the layers to train"
            )
        self.student, self.distillers = student, distillers
        self.label_smoothing, self.balance = label_smoothing, balance
        self.register_buffer("class_weights", None, persistent=False)
        self.contiguous = False
        losses = self.losses.values()
        self.student_needs = frozenset().union(*(loss.needs.student for loss in losses))
        self.teacher_needs = frozenset().union(*(loss.needs.teacher for loss in losses))
        if balance is not None and any(balance.reads_logits_of(loss.teacher_index) for loss in losses):
            self.teacher_needs |= {"logits"}
        self._closed: set[str] = set()

    @property
    def losses(self) -> dict[str, DistillationLoss]:
        """The distillation losses by name."""
        return {name: loss for name, loss in self.distillers.items() if isinstance(loss, DistillationLoss)}

    def forward(self, batch: Batch, teacher: NetworkOutput) -> dict[str, Tensor]:
        """Return the raw loss terms by name, each a scalar.

        "ce" is the cross-entropy, for a batch with targets; "METHOD.TERM" is a term of a distillation loss ("2:METHOD.TERM" for
        the second of several teachers).
        """
        image = batch.image.contiguous() if self.contiguous else batch.image
        student = self.student(image, self.student_needs | ({"logits"} if batch.target is not None else set()))
        terms, outputs = {}, (teacher, *teacher.extra_teachers)
        if batch.target is not None:
            logits, weights = student.logits.float(), self.class_weights
            terms["ce"] = cross_entropy(logits, batch.target, weights, self.label_smoothing)
        if self.training and self.balance is not None:
            self.balance.observe(student.logits, [output.logits for output in outputs], batch.target)
        for name, loss in self.losses.items():
            if name not in self._closed:
                values = loss(student, outputs[loss.teacher_index], batch)
                terms |= {f"{name}.{term}": value for term, value in values.items()}
        return terms

    def choose_memory_format(self) -> "StudentWithLosses":
        """Convert the weights to channels last, the faster format, and return self; images must then have it too.

        A learner for which oneDNN's kernels of this format are wrong stays contiguous, and converts its images itself: on a
        processor with AVX2 only, the gradient of the weights of a 1x1 convolution with stride and fewer than 8 input channels is
        written out of bounds (https://github.com/uxlfoundation/oneDNN/issues/6035).
        """
        on_cpu = next(self.student.parameters()).device.type == "cpu"
        avx2 = on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
        self.contiguous = avx2 and any(map(_is_strided_pointwise, self.modules()))
        return self if self.contiguous else self.to(memory_format=torch.channels_last)

    def close(self, groups: Collection[int]) -> set[int]:
        """Switch off the terms of groups that the balance has closed; return the indices of teachers no longer needed.

        A closed term is not computed again. A loss without open terms is skipped and its parameters are frozen.
        """
        assert self.balance is not None
        losses = self.losses
        for name, loss in losses.items():
            loss.weights = {
                term: 0.0 if self.balance.groups[f"{name}.{term}"] in groups else weight
                for term, weight in loss.weights.items()
            }
            if not any(loss.weights.values()):
                self._closed.add(name)
                loss.requires_grad_(False)
        needed = {loss.teacher_index for name, loss in losses.items() if name not in self._closed}
        if not needed:
            self.student_needs, self.teacher_needs = frozenset(), frozenset()
        return {loss.teacher_index for loss in losses.values()} - needed

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the student's architecture exempts from weight decay (position embeddings, ...)."""
        names = getattr(self.student.module, "no_weight_decay", set)()
        return {f"student.module.{name}" for name in names}

    def weights(self, ce: float = 1.0) -> dict[str, float]:
        """Return the weight of every term by name; `ce` is the weight of the cross-entropy."""
        terms = {f"{name}.{term}": w for name, loss in self.losses.items() for term, w in loss.weights.items()}
        return {"ce": ce} | terms


def _is_strided_pointwise(module: nn.Module) -> bool:
    """Return whether a module is a 1x1 convolution with stride and fewer than 8 input channels."""
    if not isinstance(module, nn.Conv2d):
        return False
    return set(module.kernel_size) == {1} and set(module.stride) != {1} and module.in_channels // module.groups < 8


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float], balance: Balance | None = None) -> Tensor:
    """Return the loss, a scalar: the sum of weight * term, changed by the balance.

    balance: changes the summands, see `Balance.balanced`.

    Raises:
        UhkdError: without any term of weight above 0.
    """
    weighted = {name: weights[name] * value for name, value in terms.items() if weights[name]}
    if not weighted:
        raise UhkdError("nothing to learn from: no labels, and no method with a term of weight above 0")
    summands = torch.stack(list(weighted.values()))
    return (summands if balance is None else balance.balanced(list(weighted), summands)).sum()
