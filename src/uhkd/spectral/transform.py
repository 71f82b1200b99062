"""Transform of feature maps to a few numbers per channel, the same for teacher and student."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.spectral.fourier import area_basis, complex_halfplane, fourier_basis, halfplane_frequencies, project

Form = Literal["pairs", "amplitude", "log-amplitude", "area"]
"""Numbers per frequency: cosine and sine coefficients, amplitude, or its logarithm; "area": means of cells."""


class SpectralTransform(nn.Module):
    """Transform maps (B, C, H, W) to (B, C, K), for the teacher (in `FTM`) and the student (in `FAM`). No state is saved.

    Args:
        grid: (H, W) of the maps.
        size: number of coefficients per axis, (2*r_h+1, 2*r_w+1); cells per axis for the form "area".
        form: "pairs": cosine and sine coefficients, K = size[0] * size[1]. "amplitude": |X[u,v]| of one frequency of each
            conjugate pair, K about half as large; DC keeps its sign, which contains no position. "log-amplitude": the same,
            but the logarithm of all amplitudes except DC. "area": means of cells (the spatial twins).
    """

    rows: Tensor
    cols: Tensor

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], form: Form) -> None:
        super().__init__()
        self.size, self.form = size, form
        bases = [
            area_basis(n, k) if form == "area" else fourier_basis(n, k // 2) for n, k in zip(grid, size, strict=True)
        ]
        self.register_buffer("rows", bases[0], persistent=False)
        self.register_buffer("cols", bases[1], persistent=False)

    def project(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c u v"]:
        """Return the linear part of the transform, which commutes with any mixing of channels."""
        return project(x, self.rows, self.cols)

    def to_features(self, coefficients: Float[Tensor, "b c u v"]) -> Float[Tensor, "b c k"]:
        """Return the features of projected maps: flattened coefficients ("pairs", "area") or amplitudes."""
        if self.form in ("pairs", "area"):
            return coefficients.flatten(-2)
        real, imaginary = complex_halfplane(coefficients)
        # 1e-8 keeps the gradient finite where the spectrum is zero and |X| is not differentiable.
        amplitude = (real[..., 1:].square() + imaginary[..., 1:].square() + 1e-8).sqrt()
        if self.form == "log-amplitude":
            amplitude = (amplitude + 1e-3).log()
        return torch.cat((real[..., :1], amplitude), -1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c k"]:
        """Return the features of maps, in float32."""
        return self.to_features(self.project(x))


def radial_frequencies(size: tuple[int, int], form: Form) -> Float[Tensor, " k"]:
    """Return sqrt(u^2 + v^2) of each of the K features, in cycles per image; zeros for the form "area"."""
    if form == "area":
        return torch.zeros(size[0] * size[1])
    if form == "pairs":
        axes = [(torch.arange(k) + 1) // 2 for k in size]
        return torch.hypot(axes[0][:, None].float(), axes[1][None].float()).flatten()
    return torch.tensor([math.hypot(u, v) for u, v in halfplane_frequencies(size)])
