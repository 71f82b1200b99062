"""FTM: feature maps of the teacher -> compact, standardised spectra (UHKD, arXiv 2510.24116)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.errors import UhkdError, check_choice
from uhkd.spectral.fourier import as_double
from uhkd.spectral.matching import Maps, SpectralTarget, Standardise, crop_indices, ftm_shapes, num_coefficients
from uhkd.spectral.transform import SpectralTransform

# The divisor of a coefficient is at least this share of the median over channels. Otherwise a channel that is inactive on
# the calibration images and active later would give targets of thousands and dominate the loss.
_SPREAD_FLOOR = 0.1
# Whitening scales a principal channel as if its variance were at least this share of the mean variance of those kept.
_LEAST_VARIANCE = 0.01


class FTM(nn.Module):
    """Feature Transformation Module: transform, standardise and reduce the teacher's maps, without trained parameters.

    Per level: low-frequency coefficients -> standardisation -> optional channel reduction (PCA) -> crop to the coefficients
    that the student's grid has too. The statistics come from one calibration pass (`calibrate`) on the teacher alone and are
    then fixed. Standardisation subtracts the mean of each coefficient of each channel and divides by its standard deviation
    ("coefficient") or by the root mean square of the standard deviations of the channel's coefficients ("channel"); "none"
    does neither. Divisors are at least a tenth of the median over channels. A level without surplus channels has no PCA;
    otherwise one divisor per level gives the scores a mean square of 1, as without PCA.
    Source: FTM of UHKD (arXiv 2510.24116), whose abstract leaves these details open.

    Raises:
        UhkdError: for an unknown standardisation, or `whiten` outside 0..1.
    """

    calibrated: Tensor

    def __init__(self, target: SpectralTarget, maps: Maps) -> None:
        super().__init__()
        check_choice("standardise", target.standardise, Standardise)
        self.target = target
        self.represent = nn.ModuleList()
        self.shapes = ftm_shapes(target, maps)
        if not 0 <= target.whiten <= 1:
            raise UhkdError(f"whiten must be from 0 (variances unchanged) to 1 (equal variances), got {target.whiten}")
        self.reduced: list[bool] = []
        for i, (level, (channels, _)) in enumerate(zip(target.levels, self.shapes, strict=True)):
            c, h, w = maps[level.teacher]
            k = num_coefficients(level.full_size, level.form)
            self.reduced.append(target.whiten > 0 or channels < c)
            self.represent.append(SpectralTransform((h, w), level.full_size, level.form))
            self.register_buffer(f"mean{i}", torch.zeros(c, k))
            self.register_buffer(f"scale{i}", torch.ones(c, k))
            if self.reduced[i]:
                self.register_buffer(f"pca{i}", torch.zeros(channels, c))
            crop = crop_indices(level.full_size, level.size, level.form)
            self.register_buffer(f"crop{i}", None if crop is None else torch.tensor(crop), persistent=False)
        self.register_buffer("calibrated", torch.tensor(False))

    def raw(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """Return the features (B, C, K) of each level before standardisation."""
        pairs = zip(self.represent, self.target.levels, strict=True)
        return tuple(transform(maps[level.teacher]) for transform, level in pairs)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """Return the spectrum (B, C_target, K) of each level from all maps (B, C, H, W) of the teacher, in float32."""
        spectra = []
        for i, x in enumerate(self.raw(maps)):
            x = (x - self.get_buffer(f"mean{i}")) / self.get_buffer(f"scale{i}")
            if self.reduced[i]:
                with torch.autocast(x.device.type, enabled=False):
                    # one product without a copy: features are channels-last in memory
                    x = (x.mT @ self.get_buffer(f"pca{i}").mT).mT
            crop = self.get_buffer(f"crop{i}")
            spectra.append(x if crop is None else x[..., crop])
        return tuple(spectra)

    @torch.no_grad()
    def calibrate(self, raw: Sequence[Float[Tensor, "n _ _"]]) -> None:
        """Set mean, scale and PCA of every level from the output of `raw` for n >= 2 images.

        Raises:
            UhkdError: for fewer than two images, or values that are not finite.
        """
        for i, (x, (channels, _)) in enumerate(zip(raw, self.shapes, strict=True)):
            if len(x) < 2 or not x.isfinite().all():
                raise UhkdError(
                    f"calibration of level {i} needs at least 2 images with finite teacher features, got {len(x)}"
                    f"{'' if x.isfinite().all() else ' with NaN or infinite values; check the teacher'}"
                )
            x = as_double(x)
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
                # eigh sorts in ascending order; the largest components come first, with a fixed sign, so that runs agree
                values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
                values, components = values.flip(0)[:channels], vectors.flip(1)[:, :channels].T
                sign = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
                spread = values.clamp_min(_LEAST_VARIANCE * values.mean()).pow(self.target.whiten / 2)
                components = components / spread[:, None]
                size = (rows @ components.T).square().mean().sqrt().clamp_min(1e-12)
                self.get_buffer(f"pca{i}").copy_(components * sign / size)
        self.calibrated.fill_(True)


def _spread_floor(spread: Float[Tensor, "c k"], size: Tensor) -> Float[Tensor, " k"]:
    """Return the smallest divisor of each coefficient: a share of the channels' median spread, robust to a few huge channels.

    A spread up to 1e-5 of the values' mean size is rounding noise and not counted; a coefficient with only such gets 1.
    """
    counted = spread.where(spread > 1e-5 * size, torch.nan)
    return (_SPREAD_FLOOR * counted.nanmedian(0).values).nan_to_num(1.0)
