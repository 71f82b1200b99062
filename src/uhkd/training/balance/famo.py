"""The balance "famo": cross-entropy, feature terms and logit terms decrease at the same rate."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from uhkd.distributed import world_size
from uhkd.recipe.balance import FamoSettings
from uhkd.training.balance.base import SMALLEST, Balance


class Famo(Balance):
    """Fast adaptive multitask optimisation (Liu et al. 2023, arXiv 2306.03792, Algorithm 1) over cross-entropy and groups.

    The loss is c * sum_k z_k log(l_k) with z = softmax(xi) and c = 1 / sum_k (z_k / l_k): its gradient is the mean of the groups'
    gradients that decreases all logarithms equally. xi moves against the decrease of each logarithm, which is measured on the
    next batch instead of a second pass over the same one; the paper allows this.
    """

    xi: Tensor
    before: Tensor
    now: Tensor
    passes: Tensor

    def __init__(self, groups: Mapping[str, int], settings: FamoSettings) -> None:
        super().__init__(groups, ("constant", "constant"))
        self.settings = settings
        for name in ("xi", "before", "now"):
            self.register_buffer(name, torch.zeros(self.size))
        self.register_buffer("passes", torch.zeros(2))  # number of forward passes summed in `before` and `now`

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return c * z_k log(l_k) of each group that has a term among `names`, zeros for the others."""
        index = self._group_index(names, weighted.device)
        used = sorted({self.groups.get(name, 0) for name in names})
        losses = weighted.new_zeros(self.size).index_add(0, index, weighted)[used].clamp_min(SMALLEST)
        z = self.xi[used].softmax(0)
        logs = losses.log()
        with torch.no_grad():
            if self.training:
                self.now[used] += logs
                self.passes[1] += 1
            scale = 1 / (z / losses).sum()
        return scale * z * logs

    @torch.no_grad()
    def update(self, images: int) -> None:
        """Update xi by the decrease of each logarithm since the last step."""
        mean = self.now / self.passes[1].clamp_min(1)
        if world_size() > 1:
            dist.all_reduce(mean)
            mean /= world_size()
        used = [0, *self.used_groups]
        decrease = (self.before - mean)[used] * self.passes[0]
        z = self.xi[used].softmax(0)
        gradient = z * (decrease - (z * decrease).sum())
        self.xi[used] -= self.settings.rate * (gradient + self.settings.decay * self.xi[used])
        self.before.copy_(mean)
        self.passes[0] = 1
        self.now.zero_()
        self.passes[1] = 0

    def group_factors(self) -> dict[int, float]:
        """Return what the gradient of each weighted group is multiplied by, c * z_k / l_k, also of the cross-entropy (group 0).

        l_k is that of the last step; before the first step all are taken as 1.
        """
        used = [0, *self.used_groups]
        factors = self.xi[used].softmax(0) / self.before[used].exp()
        return dict(zip(used, (factors / factors.sum()).tolist(), strict=True))
