"""CRD: contrastive representation distillation (Tian, Krishnan, Isola 2020, arXiv 1910.10699, Eq. 17 and 18)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import DistillationLoss, Requirements, at_least_float32, check_positive, embedding_widths

_EPS = 1e-7  # the authors'
_FULL_BANK = 4  # bank rows per drawn one up to which the product with the whole bank is cheaper than gathering rows


def exponents(
    anchor: Float[Tensor, "b d"], bank: Float[Tensor, "n d"], drawn: Int[Tensor, "b k1"], temperature: float
) -> Float[Tensor, "b k1"]:
    """<anchor, bank row> / T for the drawn rows of each image."""
    if len(bank) <= _FULL_BANK * drawn.shape[1]:
        # of a copy: the bank is overwritten before the backward pass reads it
        products = (anchor @ bank.clone().T).gather(1, drawn)
    else:
        products = torch.einsum("bkd,bd->bk", bank[drawn], anchor)
    return products / temperature


def contrast(exponent: Float[Tensor, "b k1"], log_z: Float[Tensor, ""], num_samples: int) -> Float[Tensor, ""]:
    """Noise-contrastive loss (Eq. 18) of p = exp(exponent) / Z: column 0 is the positive, the rest K draws from N images.

    -1/B sum over images of log(p / (p + c)) for the positive and log(c / (p + c)) for each draw, c = K / N. In logarithms, so
    that no temperature overflows.
    """
    noise = (exponent.shape[1] - 1) / num_samples
    log_p = exponent - log_z
    total = torch.logaddexp(log_p, log_p.new_tensor(math.log(noise + _EPS)))
    return -(log_p[:, 0].sum() + math.log(noise) * log_p[:, 1:].numel() - total.sum()) / len(log_p)


class CRD(DistillationLoss):
    """An image's two embeddings recognise each other among many others, kept from earlier steps in two memory banks.

    Both embeddings go through a learned linear map and are divided by their length. The student's meets the teacher's bank and
    the other way round; then the rows of this batch's images (`Batch.index`) move towards the new embeddings. The constants Z
    are set by the first batch. The banks (2 x N x dim numbers) are buffers, so they lie in checkpoints. Loss and banks are
    the authors' code; negatives are drawn over all images, the positive among them, as its memory does by itself, while
    their data loaders draw from other classes only. Of several processes each draws negatives for its own images, and all keep
    the same banks.

    Args:
        dim: width of the shared space, at least 1.
        negatives: K, draws per image, at least 1.
        temperature: T > 0.
        momentum: share of its old value that a bank row keeps, from 0 to below 1.

    Raises:
        UhkdError: for settings out of range, or a side without embedding.
    """

    default_weights: ClassVar = {"contrast": 1.0}
    main_term = "contrast"
    tunable = ("temperature", (0.1, 0.2))

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalisers: Tensor

    def __init__(
        self,
        shapes: PairShapes,
        weights: Mapping[str, float] | None = None,
        *,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(weights)
        for name, value in (("dim", dim), ("negatives", negatives), ("temperature", temperature)):
            check_positive(value, name)
        if not 0 <= momentum < 1:
            raise UhkdError(f"momentum must be from 0 to below 1, got {momentum}")
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        student, teacher = embedding_widths(shapes, "crd")
        if self.is_active("contrast"):
            self.embed_student, self.embed_teacher = nn.Linear(student, dim), nn.Linear(teacher, dim)
            spread = 1 / math.sqrt(dim / 3)  # rows of expected length 1
            for name in ("student_bank", "teacher_bank"):
                self.register_buffer(name, torch.empty(shapes.num_samples, dim).uniform_(-spread, spread))
            self.register_buffer("log_normalisers", torch.full((2,), math.inf))  # log Z of both sides; inf: not set yet
            self.needs = Requirements(frozenset({"embedding"}), frozenset({"embedding"}), index=True)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """{"contrast": student's and teacher's loss}; in training the banks take in this batch."""
        if not self.is_active("contrast"):
            return {}
        count, images = len(self.student_bank), len(batch.index)
        drawn = torch.randint(count, (images, self.negatives), device=batch.index.device)
        return {"contrast": self.loss(student, teacher, batch.index, drawn)}

    def loss(
        self,
        student: NetworkOutput,
        teacher: NetworkOutput,
        index: Int[Tensor, " b"],
        negatives: Int[Tensor, "b k"],
        z: tuple[float, float] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss for given negatives, and given Z of student and teacher in place of the own ones."""
        ours, theirs = self.embed_student(student.embedding), self.embed_teacher(teacher.embedding)
        count = len(self.student_bank)
        with torch.autocast(index.device.type, enabled=False):
            ours, theirs = F.normalize(at_least_float32(ours)), F.normalize(at_least_float32(theirs))
            drawn = torch.cat((index[:, None], negatives), 1)
            found = [
                exponents(anchor, bank, drawn, self.temperature)
                for anchor, bank in ((ours, self.teacher_bank), (theirs, self.student_bank))
            ]
            if z is None:
                # of N times the mean of all exponentials of the first batch, over all processes
                total = [all_gather_batch(x.detach().logsumexp(1)) for x in found]
                first = torch.stack([x.logsumexp(0) + math.log(count / (len(x) * drawn.shape[1])) for x in total])
                log_z = torch.where(
                    self.log_normalisers.isinf(), first.to(self.log_normalisers.dtype), self.log_normalisers
                )
            else:
                log_z = torch.tensor(z, dtype=torch.float64).log().to(self.log_normalisers)
            if self.training:
                self.log_normalisers.copy_(log_z)
                # the same rows in all processes, which so keep the same banks
                index = all_gather_batch(index)
                self._remember(self.student_bank, index, all_gather_batch(ours.detach()))
                self._remember(self.teacher_bank, index, all_gather_batch(theirs.detach()))
            return torch.stack([contrast(x, log_z[i], count) for i, x in enumerate(found)]).sum()

    @torch.no_grad()
    def _remember(self, bank: Tensor, index: Tensor, rows: Tensor) -> None:
        moved = self.momentum * bank[index] + (1 - self.momentum) * rows.to(bank.dtype)
        bank.index_copy_(0, index, F.normalize(moved))
