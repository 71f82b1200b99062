"""Cross-correlation of two networks over a batch, and what is redundant in it (RSD, arXiv 2507.21844)."""

import torch
from jaxtyping import Float
from torch import Tensor

from uhkd.methods.base import wide


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
