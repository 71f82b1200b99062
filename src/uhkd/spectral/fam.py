"""FAM: a trained projection of the student's feature maps to spectral targets (UHKD, arXiv 2510.24116)."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.distributed import all_gather_batch, world_size
from uhkd.errors import UhkdError, check_choice
from uhkd.spectral import Form, SpectralTransform, radial_frequencies, rotate

FAMForm = Literal["linear", "bands", "mlp", "offset", "rotation", "conv"]
"""How the student's coefficients are mixed, see `FAM`."""


class FAM(nn.Module):
    """Feature Alignment Module of one level: student map (B, C_s, H, W) -> prediction (B, C_t, K) of the FTM's target.

    The map is transformed first (H*W cells -> a few coefficients), then its channels are mixed. Both are linear and commute,
    so this equals a 1x1 convolution before the transform, at a small fraction of the cost. Batch norm then standardises the
    prediction, with a gain and a bias per channel and coefficient, so that scale and decay of the student's spectrum do not
    matter. FAM is trained with the student and not part of the exported student.
    Source: FAM of UHKD (arXiv 2510.24116), whose abstract leaves the form open.

    Args:
        shape: (C_s, H, W) of the student's map.
        target: (C_t, K) of the FTM's target.
        size: coefficients per axis; represent: form of the features, see `SpectralTransform`.
        form: "linear": channel mix; "bands": a separate mix for each radial frequency (a global convolution without phase);
            "mlp": two layers with normalisation, at each coefficient; "offset": linear after a trained sampling offset (one
            phase per axis, for strided CNNs with off-centre cells); "rotation": the same with a free angle per frequency;
            "conv": a 3x3 depthwise convolution before the transform and the linear mix.
        hidden: hidden width of "mlp"; None: twice the larger number of channels.

    Raises:
        UhkdError: for an unknown form, a form that does not fit `represent`, or `hidden` below 1.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        target: tuple[int, int],
        *,
        size: tuple[int, int],
        represent: Form,
        form: FAMForm = "linear",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("FAM form", form, FAMForm)
        if form == "bands" and represent == "area":
            raise UhkdError(
                "FAM form 'bands' mixes each frequency separately, and a spatial twin has none; use 'linear'"
            )
        if form in ("offset", "rotation") and represent != "pairs":
            raise UhkdError(f"FAM form {form!r} rotates phases, and the form {represent!r} has none; use form 'pairs'")
        if hidden is not None and hidden < 1:
            raise UhkdError(f"hidden must be at least 1, got {hidden}")
        (channels, height, width), (out, k) = shape, target
        self.form = form
        self.represent = SpectralTransform((height, width), size, represent)
        self.before = nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if form == "conv" else nn.Identity()
        if form == "mlp":
            hidden = 2 * max(channels, out) if hidden is None else hidden
            self.mix = nn.Sequential(
                nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out)
            )
        elif form == "bands":
            _, bands = radial_frequencies(size, "pairs").unique(return_inverse=True)
            self.register_buffer("bands", bands, persistent=False)
            self.mix = nn.ModuleList(nn.Linear(channels, out, bias=False) for _ in range(int(bands.max()) + 1))
        else:
            self.mix = nn.Linear(channels, out, bias=False)
        if form in ("offset", "rotation"):
            angles = [1 if form == "offset" else n // 2 for n in size]
            self.row_angles, self.col_angles = (nn.Parameter(torch.zeros(n)) for n in angles)
            for name, n in zip(("row_orders", "col_orders"), size, strict=True):
                orders = torch.arange(1.0, n // 2 + 1) * 2 * math.pi if form == "offset" else torch.ones(n // 2)
                self.register_buffer(name, orders, persistent=False)
        self.norm = nn.BatchNorm1d(out * k)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "n t k"]:
        """Return the predicted target, computed in float32 also inside autocast.

        In training, it is standardised over the images of all processes and contains all of them (`all_gather_batch`).

        Raises:
            UhkdError: for a batch of one image in training mode.
        """
        if self.training and len(x) * world_size() < 2:
            raise UhkdError(
                f"feature matching standardises over the batch and needs at least 2 images in training, got {len(x)}; "
                "use a larger batch (or fewer accumulation steps), or set the weights of the terms on features to 0"
            )
        x = self.before(x)
        with torch.autocast(x.device.type, enabled=False):
            coefficients = self.represent.project(x)
            if self.form in ("offset", "rotation"):
                rows, cols = self.get_buffer("row_orders"), self.get_buffer("col_orders")
                coefficients = rotate(coefficients, self.row_angles * rows, self.col_angles * cols)
            predicted = self.represent.to_features(self._mix_channels(coefficients))
            if self.training:
                predicted = all_gather_batch(predicted)
            return self.norm(predicted.flatten(1)).view_as(predicted)

    def _mix_channels(self, coefficients: Float[Tensor, "b c u v"]) -> Float[Tensor, "b t u v"]:
        rows = coefficients.permute(0, 2, 3, 1)
        if not isinstance(self.mix, nn.ModuleList):
            return self.mix(rows).permute(0, 3, 1, 2)
        bands = self.get_buffer("bands").unflatten(0, rows.shape[1:3])
        mixes = torch.stack([mix.get_parameter("weight") for mix in self.mix])
        return torch.einsum("buvc,uvtc->btuv", rows, mixes[bands])
