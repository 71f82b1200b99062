"""Correlation in place of equality: of class probabilities (DIST, arXiv 2205.10536) and of features (RSD, arXiv 2507.21844)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.methods.base import wide


def correlation_distance(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """1 - mean over rows of Pearson's correlation: from 0, where every row of `a` is a rising linear image of `b`'s, to 2.

    The authors' 1e-8 in the denominator makes a constant row uncorrelated, and a nearly constant one less correlated than
    it is: for a thousand classes and sharp probabilities, columns of equal inputs stay clearly above 0.
    """
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()


def inter_class(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """T^2 times the correlation distance of both sides' class probabilities among the classes of each image (DIST, Eq. 8)."""
    return temperature**2 * correlation_distance(*_probabilities(student, teacher, temperature))


def intra_class(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """The same among the images of the batch, for each class (DIST, Eq. 9)."""
    p, q = _probabilities(student, teacher, temperature)
    return temperature**2 * correlation_distance(p.T, q.T)


def _probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.softmax(wide(student) / temperature, 1), F.softmax(wide(teacher) / temperature, 1)


def redundancy(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"], kappa: float = 0.01) -> Float[Tensor, ""]:
    """sum of (P - I)^2, off the diagonal times kappa, of the cross-correlation P = z_t^T z_s / B, in at least float32.

    z: standardised over the batch (population deviation plus 1e-5). Near zero when every student number correlates fully with
    the teacher's of the same place and with no other.
    """
    with torch.autocast(student.device.type, enabled=False):
        z_s, z_t = ((x - x.mean(0)) / (x.std(0, correction=0) + 1e-5) for x in (wide(student), wide(teacher)))
        identity = torch.eye(z_s.shape[1], dtype=z_s.dtype, device=z_s.device)
        errors = (z_t.T @ z_s / len(z_s) - identity).square()
        return (errors * (kappa + (1 - kappa) * identity)).sum()
