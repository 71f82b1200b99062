"""A feature map as a few numbers per channel, the same way for teacher and student."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.spectral.fourier import area_basis, complex_halfplane, fourier_basis, halfplane_frequencies, project

Form = Literal["pairs", "amplitude", "log-amplitude", "area"]
"""What is kept of a frequency: its cosine and sine pairs, its amplitude or the logarithm of that; area: mean values of cells."""


class SpectralTransform(nn.Module):
    """A feature map as K numbers per channel; the same object serves teacher (FTM) and student (FAM). No state is saved.

    Args:
        grid: (H, W) of the maps it will meet.
        size: coefficients kept per axis, (2*r_h+1, 2*r_w+1); cells per axis for the form "area".
        form: "pairs" (cosine and sine coefficients, K = size product); "amplitude" (|X[u,v]| of one frequency of each
            conjugate pair, K about half as large; DC keeps its sign, which holds no position); "log-amplitude" (the same,
            the logarithm of all but DC); "area" (the spatial twin).
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
        """The linear part, which commutes with any mixing of channels."""
        return project(x, self.rows, self.cols)

    def to_features(self, coefficients: Float[Tensor, "b c u v"]) -> Float[Tensor, "b c k"]:
        """The rest: flatten ("pairs", "area"), or forget the phase."""
        if self.form in ("pairs", "area"):
            return coefficients.flatten(-2)
        real, imaginary = complex_halfplane(coefficients)
        # The small constant keeps the gradient finite at a zero of the spectrum, where |X| has a corner.
        amplitude = (real[..., 1:].square() + imaginary[..., 1:].square() + 1e-8).sqrt()
        if self.form == "log-amplitude":
            amplitude = (amplitude + 1e-3).log()
        return torch.cat((real[..., :1], amplitude), -1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c k"]:
        """(B, C, H, W) -> (B, C, K), float32."""
        return self.to_features(self.project(x))


def radial_frequencies(size: tuple[int, int], form: Form) -> Float[Tensor, " k"]:
    """sqrt(u^2 + v^2) of each of the K numbers of a representation, in cycles per image; zeros for the form "area"."""
    if form == "area":
        return torch.zeros(size[0] * size[1])
    if form == "pairs":
        axes = [(torch.arange(k) + 1) // 2 for k in size]
        return torch.hypot(axes[0][:, None].float(), axes[1][None].float()).flatten()
    return torch.tensor([math.hypot(u, v) for u, v in halfplane_frequencies(size)])
