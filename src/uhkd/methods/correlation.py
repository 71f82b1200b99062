"""Correlation losses: of class probabilities (DIST, arXiv 2205.10536) and of features (RSD, arXiv 2507.21844)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.methods.base import at_least_float32


def correlation_distance(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """Return 1 - mean over rows of Pearson's correlation, from 0 (each row of `a` is a rising linear function of `b`'s) to 2.

    With the authors' 1e-8 in the denominator, a constant row has correlation 0, and a nearly constant row has a smaller
    correlation than exact: for a thousand classes and sharp probabilities, the distance of equal columns is clearly above 0.
    """
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()


def class_distances(
    student: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    temperature: float = 1.0,
    terms: Iterable[str] = ("inter", "intra"),
) -> dict[str, Float[Tensor, ""]]:
    """Return T^2 times the correlation distance of class probabilities, for each of `terms`, in at least float32.

    "inter": over the classes of each image (DIST, Eq. 8); "intra": over the images of the batch, for each class (Eq. 9).
    """
    p, q = (F.softmax(at_least_float32(x) / temperature, 1) for x in (student, teacher))
    pairs = {"inter": (p, q), "intra": (p.T, q.T)}
    return {term: temperature**2 * correlation_distance(*pairs[term]) for term in terms}


def redundancy(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"], kappa: float = 0.01) -> Float[Tensor, ""]:
    """Return the sum of (P - I)^2, off the diagonal times kappa, for P = z_t^T z_s / B, in at least float32.

    z: inputs standardised over the batch (population deviation plus 1e-5), so P is their cross-correlation. The loss is near
    zero if each student feature correlates fully with the teacher feature of the same index, and with no other.
    """
    with torch.autocast(student.device.type, enabled=False):
        z_s, z_t = (
            (x - x.mean(0)) / (x.std(0, correction=0) + 1e-5)
            for x in (at_least_float32(student), at_least_float32(teacher))
        )
        identity = torch.eye(z_s.shape[1], dtype=z_s.dtype, device=z_s.device)
        errors = (z_t.T @ z_s / len(z_s) - identity).square()
        return (errors * (kappa + (1 - kappa) * identity)).sum()
