"""SpectralKD: distillation by full Fourier spectra of feature maps (Tian et al. 2024, arXiv 2412.19055)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import Requirements, at_least_float32
from uhkd.methods.feature_pairs import match_feature_maps, pool_to_common_grid
from uhkd.methods.kd import SoftTargetLoss


def spectral_error(student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """Return the mean squared difference of the real and imaginary parts of orthonormal `rfft2`s, in at least float32.

    Neighbouring channels of the wider map are averaged to the channel count of the other map first. Zero exactly for equal
    averaged maps.
    """
    count = min(student.shape[1], teacher.shape[1])
    maps = [_pool_channels(at_least_float32(x), count) for x in (student, teacher)]
    spectra = [torch.view_as_real(torch.fft.rfft2(x, norm="ortho")) for x in maps]
    return F.mse_loss(spectra[0], spectra[1])


def _pool_channels(x: Float[Tensor, "b c h w"], count: int) -> Float[Tensor, "b k h w"]:
    """Average neighbouring channels to `count` channels."""
    if x.shape[1] % count == 0:  # the backward pass of this is deterministic on a GPU
        return x.unflatten(1, (count, -1)).mean(2)
    return F.adaptive_avg_pool3d(x, (count, None, None))


class SpectralKD(SoftTargetLoss):
    """Match full spectra at every matched level without trained layers, and add soft targets.

    As in the authors' code, more teacher channels than student channels are pooled. For cases that it does not cover (a
    wider student, different grids), the larger map is pooled too. The authors match selected layers; here all matched levels
    count. The weight is theirs, 0.2. They use cross-entropy weight 0.1 and soft-target weight 0.9 (`--weights ce=0.1
    kl=0.9`); here both are 1, as in every method.

    Args:
        temperature: T > 0 of the soft targets.

    Raises:
        UhkdError: for a temperature of 0 or below, or a network without feature maps.
    """

    default_weights: ClassVar = {"kl": 1.0, "fft": 0.2}
    main_term = "fft"
    auxiliary_logit_terms = frozenset({"kl"})
    tunable = ("temperature", (2.0, 4.0))

    def __init__(
        self, shapes: PairShapes, weights: Mapping[str, float] | None = None, *, temperature: float = 1.0
    ) -> None:
        super().__init__(weights, temperature)
        self.pairs, _, _ = match_feature_maps(shapes, "spectralkd")
        if self.is_active("fft"):
            self.needs = Requirements(self.logits | {"maps"}, self.logits | {"maps"})

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return {"kl": T^2 KL(teacher || student), "fft": mean over levels of `spectral_error`}."""
        terms = self.soft_targets(student, teacher)
        if self.is_active("fft"):
            assert student.maps is not None and teacher.maps is not None
            errors = [spectral_error(*pool_to_common_grid(student.maps[s], teacher.maps[t])) for s, t in self.pairs]
            terms["fft"] = torch.stack(errors).mean()
        return terms
