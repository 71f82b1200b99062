"""Literal, slow twins of the formulas in uhkd.spectral: double loops straight from the definition, float64."""

import cmath
import math

import torch
from torch import Tensor


def coefficient(x: Tensor, u: int, v: int) -> complex:
    """X[u,v] = 1/(HW) sum_{h,w} x[h,w] exp(-2 pi i (u (h+1/2)/H + v (w+1/2)/W)) of one map (H, W)."""
    height, width = x.shape
    total = 0j
    for h in range(height):
        for w in range(width):
            phase = -2 * math.pi * (u * (h + 0.5) / height + v * (w + 0.5) / width)
            total += x[h, w].item() * cmath.exp(1j * phase)
    return total / (height * width)


def axis_function(index: int, y: float) -> float:
    """Number `index` of the real orthonormal basis 1, sqrt2 cos 1, sqrt2 sin 1, sqrt2 cos 2, ... at y in [0, 1]."""
    u = (index + 1) // 2
    if index == 0:
        return 1.0
    wave = math.cos if index % 2 else math.sin
    return math.sqrt(2) * wave(2 * math.pi * u * y)


def real_spectrum(x: Tensor, r_h: int, r_w: int) -> Tensor:
    """The real layout of one map, by the inner product with every basis function: (2*r_h+1, 2*r_w+1)."""
    height, width = x.shape
    out = torch.zeros(2 * r_h + 1, 2 * r_w + 1, dtype=torch.float64)
    for i in range(2 * r_h + 1):
        for j in range(2 * r_w + 1):
            for h in range(height):
                for w in range(width):
                    value = axis_function(i, (h + 0.5) / height) * axis_function(j, (w + 0.5) / width)
                    out[i, j] += x[h, w].item() * value / (height * width)
    return out


def band_limited(n_h: int, n_w: int, waves: list[tuple[int, int, float, float]]) -> Tensor:
    """Samples at the cell centres of sum a cos(2 pi (u y + v x) + p) over waves (u, v, a, p): (n_h, n_w)."""
    y = ((torch.arange(n_h, dtype=torch.float64) + 0.5) / n_h)[:, None]
    x = ((torch.arange(n_w, dtype=torch.float64) + 0.5) / n_w)[None]
    total = torch.zeros(n_h, n_w, dtype=torch.float64)
    for u, v, amplitude, phase in waves:
        total = total + amplitude * torch.cos(2 * math.pi * (u * y + v * x) + phase)
    return total
