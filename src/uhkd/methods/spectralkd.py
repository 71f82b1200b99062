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
    """Mean squared difference of real and imaginary parts of the orthonormal `rfft2`, in at least float32.

    The side with more channels is averaged over neighbouring ones down to the other's count; zero exactly where both are then
    equal.
    """
    count = min(student.shape[1], teacher.shape[1])
    spectra = []
    for x in (student, teacher):
        spectra.append(torch.view_as_real(torch.fft.rfft2(_fewer_channels(at_least_float32(x), count), norm="ortho")))
    return F.mse_loss(*spectra)


def _fewer_channels(x: Float[Tensor, "b c h w"], count: int) -> Float[Tensor, "b k h w"]:
    """Averaged over neighbouring channels down to `count` of them."""
    if x.shape[1] % count == 0:  # its backward pass repeats to the bit on a GPU too
        return x.unflatten(1, (count, -1)).mean(2)
    return F.adaptive_avg_pool3d(x, (count, None, None))


class SpectralKD(SoftTargetLoss):
    """The same spectrum at every matched level, nothing learned in between; soft targets come along.

    As in the authors' code, which pools the teacher's channels where they are more; where it has no answer (a wider student,
    another grid) the larger side is pooled too. They match chosen layers, here all matched levels count. Weight 0.2 as
    theirs; they weigh cross-entropy 0.1 and soft targets 0.9 (`--weights ce=0.1 kl=0.9`), here both are 1 as in every method.

    Args:
        temperature: T > 0 of the soft targets.

    Raises:
        UhkdError: for a temperature of 0 or below, or a network without taps.
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
        """{"kl": T^2 KL(teacher || student), "fft": mean over levels of the spectral error}."""
        terms = self.soft_targets(student, teacher)
        if self.is_active("fft"):
            assert student.maps is not None and teacher.maps is not None
            errors = [spectral_error(*pool_to_common_grid(student.maps[s], teacher.maps[t])) for s, t in self.pairs]
            terms["fft"] = torch.stack(errors).mean()
        return terms
