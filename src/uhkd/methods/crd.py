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

_EPS = 1e-7  # as in the authors' code
_FULL_BANK = 4  # up to so many bank rows per drawn row, a product with the whole bank is cheaper than gathering rows


def exponents(
    anchor: Float[Tensor, "b d"], bank: Float[Tensor, "n d"], drawn: Int[Tensor, "b k1"], temperature: float
) -> Float[Tensor, "b k1"]:
    """Return <anchor, bank row> / T for the drawn rows of each image."""
    if len(bank) <= _FULL_BANK * drawn.shape[1]:
        # a copy, because the bank is overwritten before the backward pass reads it
        products = (anchor @ bank.clone().T).gather(1, drawn)
    else:
        products = torch.einsum("bkd,bd->bk", bank[drawn], anchor)
    return products / temperature


def contrast(exponent: Float[Tensor, "b k1"], log_z: Float[Tensor, ""], num_samples: int) -> Float[Tensor, ""]:
    """Return the noise-contrastive loss (Eq. 18) of p = exp(exponent) / Z; column 0: positive, others: K draws from N images.

    It is -1/B times the sum over images of log(p / (p + c)) for the positive and log(c / (p + c)) for each draw, c = K / N.
    Each logarithm is a softplus of log(p / c): no temperature overflows, and the sum of K small terms keeps its digits.
    """
    noise = (exponent.shape[1] - 1) / num_samples
    log_odds = exponent - log_z - math.log(noise + _EPS)
    draws = F.softplus(log_odds[:, 1:]).sum(1) + (exponent.shape[1] - 1) * math.log1p(_EPS / noise)
    return (F.softplus(-log_odds[:, 0]) + draws).mean()


class CRD(DistillationLoss):
    """Distinguish the pair of student and teacher embeddings of one image from embeddings of other images.

    Two memory banks hold the embeddings of earlier steps. Both embeddings go through a learned linear map and are divided by
    their length. The student's embedding is compared with the teacher's bank and the teacher's with the student's bank; then
    the rows of the batch's images (`Batch.index`) move towards the new embeddings. The first batch sets the constants Z. The
    banks (2 x N x dim numbers) are buffers and therefore part of checkpoints. Loss and banks follow the authors' code.
    Negatives are drawn from all images, including the positive, as in its memory module; its data loaders draw from other
    classes only. Each of several processes draws negatives for its own images, and all processes have equal banks.

    Args:
        dim: width of the shared space, at least 1.
        negatives: K, number of draws for each image, at least 1.
        temperature: T > 0.
        momentum: share of the old value in an updated bank row, from 0 to below 1.

    Raises:
        UhkdError: for settings out of range, or a network without embedding.
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
        """Return {"contrast": sum of both sides' losses}; in training, update the banks with this batch."""
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
        """Return the loss for given negatives; `z`: constants Z of student and teacher to use instead of the stored ones."""
        student_rows, teacher_rows = self.embed_student(student.embedding), self.embed_teacher(teacher.embedding)
        count = len(self.student_bank)
        with torch.autocast(index.device.type, enabled=False):
            student_rows = F.normalize(at_least_float32(student_rows))
            teacher_rows = F.normalize(at_least_float32(teacher_rows))
            drawn = torch.cat((index[:, None], negatives), 1)
            scores = [
                exponents(anchor, bank, drawn, self.temperature)
                for anchor, bank in ((student_rows, self.teacher_bank), (teacher_rows, self.student_bank))
            ]
            if z is None:
                # Z = N times the mean of all exponentials of the first batch, over all processes
                total = [all_gather_batch(x.detach().logsumexp(1)) for x in scores]
                first = torch.stack([x.logsumexp(0) + math.log(count / (len(x) * drawn.shape[1])) for x in total])
                log_z = torch.where(
                    self.log_normalisers.isinf(), first.to(self.log_normalisers.dtype), self.log_normalisers
                )
            else:
                log_z = torch.tensor(z, dtype=torch.float64).log().to(self.log_normalisers)
            if self.training:
                self.log_normalisers.copy_(log_z)
                # the same rows in all processes keep the banks equal
                index = all_gather_batch(index)
                self._update(self.student_bank, index, all_gather_batch(student_rows.detach()))
                self._update(self.teacher_bank, index, all_gather_batch(teacher_rows.detach()))
            return torch.stack([contrast(x, log_z[i], count) for i, x in enumerate(scores)]).sum()

    @torch.no_grad()
    def _update(self, bank: Tensor, index: Tensor, rows: Tensor) -> None:
        moved = self.momentum * bank[index] + (1 - self.momentum) * rows.to(bank.dtype)
        bank.index_copy_(0, index, F.normalize(moved))
