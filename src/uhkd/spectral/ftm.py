"""FTM: teacher maps to compact, standardised spectra."""

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.spectral.matching import Maps, SpectralTarget, Standardise, crop_indices, ftm_shapes, num_coefficients
from uhkd.spectral.transform import SpectralTransform

# No coefficient is divided by less than this share of the median over channels: a channel that slept on the calibration
# images and wakes up later would otherwise give targets of thousands and drown the loss.
_SPREAD_FLOOR = 0.1
# Whitening enlarges no principal channel of less than this share of the kept channels' mean variance any further.
_LEAST_VARIANCE = 0.01


class FTM(nn.Module):
    """Feature Transformation Module: teacher maps -> compact, standardised spectra. Nothing in it is trained.

    Per level: low-frequency coefficients -> standardise -> optional fixed channel reduction (PCA). Its statistics come from
    one calibration pass (`calibrate`) and are then frozen. Standardisation subtracts the mean of each coefficient of each
    channel and divides by its own standard deviation ("coefficient"), by the root mean square of the standard deviations of
    the channel's coefficients ("channel"), or does neither ("none"). No divisor is smaller than a tenth of
    the median over channels. PCA is left out where a level has no more channels than are kept; its scores are divided by one
    number a level, so that their mean square is 1 as without PCA. Statistics and PCA belong to the teacher alone: where a
    student's grid carries fewer coefficients, the target is cropped last.
    Source: FTM of UHKD (arXiv 2510.24116); the form is ours, the paper's abstract leaves it open.
    """

    calibrated: Tensor

    def __init__(self, target: SpectralTarget, maps: Maps) -> None:
        super().__init__()
        if target.standardise not in get_args(Standardise):
            raise UhkdError(
                f"unknown standardise {target.standardise!r}; expected one of {', '.join(get_args(Standardise))}"
            )
        self.target = target
        self.represent = nn.ModuleList()
        self.shapes = ftm_shapes(target, maps)
        if not 0 <= target.whiten <= 1:
            raise UhkdError(f"whiten must be from 0 (spreads as they are) to 1 (all alike), got {target.whiten}")
        self.reduced = [
            target.whiten > 0 or channels < maps[lv.teacher][0]
            for lv, (channels, _) in zip(target.levels, self.shapes, strict=True)
        ]
        for i, (level, (channels, _)) in enumerate(zip(target.levels, self.shapes, strict=True)):
            c, h, w = maps[level.teacher]
            k = num_coefficients(level.full_size, level.form)
            self.represent.append(SpectralTransform((h, w), level.full_size, level.form))
            self.register_buffer(f"mean{i}", torch.zeros(c, k))
            self.register_buffer(f"scale{i}", torch.ones(c, k))
            if self.reduced[i]:
                self.register_buffer(f"pca{i}", torch.zeros(channels, c))
            crop = crop_indices(level.full_size, level.size, level.form)
            self.register_buffer(f"crop{i}", None if crop is None else torch.tensor(crop), persistent=False)
        self.register_buffer("calibrated", torch.tensor(False))

    def raw(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """Representations (B, C, K) before standardisation, one per level."""
        return tuple(rep(maps[lv.teacher]) for rep, lv in zip(self.represent, self.target.levels, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """All the teacher's maps, each (B, C, H, W) -> one (B, C_target, K) spectrum per level, float32."""
        spectra = []
        for i, x in enumerate(self.raw(maps)):
            x = (x - self.get_buffer(f"mean{i}")) / self.get_buffer(f"scale{i}")
            if self.reduced[i]:
                with torch.autocast(x.device.type, enabled=False):
                    # as one product in the order of the memory, where channels lie last
                    x = (x.mT @ self.get_buffer(f"pca{i}").mT).mT
            crop = self.get_buffer(f"crop{i}")
            spectra.append(x if crop is None else x[..., crop])
        return tuple(spectra)

    @torch.no_grad()
    def calibrate(self, raw: Sequence[Float[Tensor, "n _ _"]]) -> None:
        """Set mean, scale and PCA of every level from the raw representations of n >= 2 images.

        Raises:
            UhkdError: for fewer than two images, or values that are not finite.
        """
        for i, (x, (channels, _)) in enumerate(zip(raw, self.shapes, strict=True)):
            if len(x) < 2 or not x.isfinite().all():
                raise UhkdError(
                    f"calibration of level {i} needs at least 2 images with finite teacher features, got {len(x)}"
                    f"{'' if x.isfinite().all() else ' with NaN or infinite values: is the teacher sound?'}"
                )
            x = x.double()
            mean, scale = x.mean(0), torch.ones_like(x[0])
            if self.target.standardise != "none":
                variance = x.var(0, correction=0)
                if self.target.standardise == "channel":
                    variance = variance.mean(-1, keepdim=True).expand_as(variance)
                spread = variance.sqrt()
                scale = torch.maximum(spread, _spread_floor(spread, x.abs().mean()))
                self.get_buffer(f"mean{i}").copy_(mean)
                self.get_buffer(f"scale{i}").copy_(scale)
                x = (x - mean) / scale
            if self.reduced[i]:
                rows = x.mT.flatten(0, 1)
                # eigh sorts upwards; the largest components come first and get a fixed sign, so that reruns agree
                values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
                values, components = values.flip(0)[:channels], vectors.flip(1)[:, :channels].T
                sign = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
                spread = values.clamp_min(_LEAST_VARIANCE * values.mean()).pow(self.target.whiten / 2)
                components = components / spread[:, None]
                size = (rows @ components.T).square().mean().sqrt().clamp_min(1e-12)
                self.get_buffer(f"pca{i}").copy_(components * sign / size)
        self.calibrated.fill_(True)


def _spread_floor(spread: Float[Tensor, "c k"], size: Tensor) -> Float[Tensor, " k"]:
    """Least divisor of each coefficient: a share of the channels' median spread, which a few huge channels do not move.

    A spread of 1e-5 of the values' mean size and less is rounding noise; a coefficient of nothing else gets 1.
    """
    alive = spread.where(spread > 1e-5 * size, torch.nan)
    return (_SPREAD_FLOOR * alive.nanmedian(0).values).nan_to_num(1.0)
