"""Real Fourier bases at cell centres, their coefficients, and the complex spectrum in real and imaginary parts."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from uhkd.errors import UhkdError

# Up to so many coefficients, a map that is not channels-last in memory is multiplied by the full 2-d basis. For more
# coefficients, a copy to channels-last and a product per axis are faster.
_FEW = 25


def as_double(x: Tensor) -> Tensor:
    """Return a tensor of any shape in float64; on the CPU for MPS, which has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def max_radius(n: int) -> int:
    """Return the highest frequency below Nyquist on an axis of `n` cells: floor((n-1)/2)."""
    return (n - 1) // 2


def fourier_basis(n: int, radius: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k n"]:
    """Return rows `1, sqrt2 cos(2 pi u y), sqrt2 sin(2 pi u y)`, u = 1..radius, at cell centres, divided by n (k = 2*radius+1).

    Raises:
        UhkdError: for a `radius` outside 0..`max_radius(n)`.
    """
    if not 0 <= radius <= max_radius(n):
        raise UhkdError(f"radius must be in 0..{max_radius(n)} for an axis of {n} cells, got {radius}")
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rows = [torch.ones(n, dtype=torch.float64)]
    for u in range(1, radius + 1):
        rows += [math.sqrt(2) * wave(2 * math.pi * u * centres) for wave in (torch.cos, torch.sin)]
    return (torch.stack(rows) / n).to(dtype)


def area_basis(n: int, cells: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k n"]:
    """Return rows that average `n` cells over `cells` equal intervals, weighted by overlap (area pooling); each row sums to 1."""
    edges = torch.arange(n, dtype=torch.float64) / n
    starts = torch.arange(cells, dtype=torch.float64)[:, None] / cells
    overlap = (torch.minimum(edges + 1 / n, starts + 1 / cells) - torch.maximum(edges, starts)).clamp_min(0)
    return (overlap * cells).to(dtype)


def project(
    x: Float[Tensor, "b c h w"], rows: Float[Tensor, "u h"], cols: Float[Tensor, "v w"]
) -> Float[Tensor, "b c u v"]:
    """Return `rows @ x @ cols.T` of each channel, in the precision of the bases even inside autocast.

    The result and the gradient are channels-last in memory. So the channel mix that follows needs no copy, and networks of
    tokens or in channels-last format get gradients in their memory format.
    """
    b, c, h, w = x.shape
    (u, _), (v, _) = rows.shape, cols.shape
    with torch.autocast(x.device.type, enabled=False):
        cells = x.permute(0, 2, 3, 1).to(rows.dtype)
        if cells.is_contiguous() or u * v > _FEW:
            out = cols @ (rows @ cells.reshape(b, h, w * c)).view(b, u, w, c)
        else:
            basis = rows[:, None, :, None] * cols[:, None]
            out = basis.reshape(u * v, h * w) @ cells.reshape(b, h * w, c)
        return out.view(b, u, v, c).permute(0, 3, 1, 2)


def spectrum(x: Float[Tensor, "b c h w"], radius: int | tuple[int, int]) -> Float[Tensor, "b c u v"]:
    """Return the low-frequency coefficients of each channel in the real basis, (B, C, 2*r_h+1, 2*r_w+1), at least float32."""
    r_h, r_w = (radius, radius) if isinstance(radius, int) else radius
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = fourier_basis(x.shape[-2], r_h, dtype).to(x.device)
    return project(x, rows, fourier_basis(x.shape[-1], r_w, dtype).to(x.device))


def complex_halfplane(coefficients: Float[Tensor, "b c u v"]) -> tuple[Float[Tensor, "b c k"], Float[Tensor, "b c k"]]:
    """Return real and imaginary part of X[u,v] for one frequency of each conjugate pair, ordered as `halfplane_frequencies`.

    With a = 2 pi u y, b = 2 pi v x: exp(-i(a+b)) = (cos a cos b - sin a sin b) - i (sin a cos b + cos a sin b); for -v, the
    sign of sin b changes. The basis has a factor sqrt2 per non-constant axis, hence the factors 1/2 and 1/sqrt2.
    """
    x = coefficients
    dc, half = x[..., :1, :1], 1 / math.sqrt(2)
    row_c, row_s = half * x[..., 1::2, :1], half * x[..., 2::2, :1]
    col_c, col_s = half * x[..., :1, 1::2], half * x[..., :1, 2::2]
    cc, cs, sc, ss = x[..., 1::2, 1::2], x[..., 1::2, 2::2], x[..., 2::2, 1::2], x[..., 2::2, 2::2]
    real = [dc, row_c, col_c, (cc - ss) / 2, (cc + ss) / 2]
    imaginary = [torch.zeros_like(dc), -row_s, -col_s, -(sc + cs) / 2, (cs - sc) / 2]
    return torch.cat([p.flatten(-2) for p in real], -1), torch.cat([p.flatten(-2) for p in imaginary], -1)


def halfplane_frequencies(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (u, v) of each entry of `complex_halfplane` for `size` = (2*r_h+1, 2*r_w+1) coefficients."""
    us, vs = range(1, size[0] // 2 + 1), range(1, size[1] // 2 + 1)
    quadrants = [(u, sign * v) for sign in (1, -1) for u in us for v in vs]
    return [(0, 0), *((u, 0) for u in us), *((0, v) for v in vs), *quadrants]


def rotate(
    coefficients: Float[Tensor, "b c u v"], row_angles: Float[Tensor, " r"], col_angles: Float[Tensor, " s"]
) -> Float[Tensor, "b c u v"]:
    """Rotate the (cos, sin) pair of frequency u by `row_angles[u-1]` and of frequency v by `col_angles[v-1]`, in radians.

    Angles 2 pi u d shift the map by d (in units of the image side): x(y) becomes x(y - d).
    """

    def turn(x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = torch.cos(angles), torch.sin(angles)
        c, s = x[..., 1::2], x[..., 2::2]
        turned = torch.stack((c * cos - s * sin, c * sin + s * cos), -1).flatten(-2)
        return torch.cat((x[..., :1], turned), -1)

    return turn(turn(coefficients, col_angles).mT, row_angles).mT
