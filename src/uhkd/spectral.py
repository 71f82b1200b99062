"""Fourier representations of feature maps: the Feature Transformation Module (FTM) and its pure functions.

Coefficients are taken at *cell centres*, `y_h = (h + 1/2) / H`, and divided by the number of cells, so that grids of any
two sizes that sample the same scene give the same numbers. They are laid out in a real orthonormal basis: per axis
`1, sqrt2 cos 1, sqrt2 sin 1, sqrt2 cos 2, ...`, a lower radius being a prefix of a higher one. A sum of squares is then the
mean energy of the band-limited map, and no complex tensor ever appears.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Form = Literal["pairs", "amplitude", "log-amplitude", "area"]
Standardise = Literal["none", "channel", "coefficient"]

# No coefficient is divided by less than this share of its level's typical spread: a channel that slept on the calibration
# images and wakes up later would otherwise give targets of thousands and drown the loss.
_SPREAD_FLOOR = 0.1


def max_radius(n: int) -> int:
    """Highest frequency an axis of `n` cells carries without its Nyquist row: floor((n-1)/2)."""
    return (n - 1) // 2


def fourier_basis(n: int, radius: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k n"]:
    """Rows `1, sqrt2 cos(2 pi u y), sqrt2 sin(2 pi u y)` for u = 1..radius at the cell centres, divided by n: (2*radius+1, n).

    Raises:
        ValueError: when `radius` exceeds floor((n-1)/2), the highest frequency that `n` cells determine.
    """
    if not 0 <= radius <= max_radius(n):
        raise ValueError(f"radius must lie in 0..{max_radius(n)} for an axis of {n} cells, got {radius}")
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rows = [torch.ones(n, dtype=torch.float64)]
    for u in range(1, radius + 1):
        rows += [
            math.sqrt(2) * torch.cos(2 * math.pi * u * centres),
            math.sqrt(2) * torch.sin(2 * math.pi * u * centres),
        ]
    return (torch.stack(rows) / n).to(dtype)


def area_basis(n: int, cells: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k n"]:
    """Rows that average `n` cells over `cells` equal intervals by overlap (area pooling): (cells, n), each row summing to 1."""
    edges = torch.arange(n, dtype=torch.float64) / n
    starts = torch.arange(cells, dtype=torch.float64)[:, None] / cells
    overlap = (torch.minimum(edges + 1 / n, starts + 1 / cells) - torch.maximum(edges, starts)).clamp_min(0)
    return (overlap * cells).to(dtype)


def project(
    x: Float[Tensor, "b c h w"], rows: Float[Tensor, "u h"], cols: Float[Tensor, "v w"]
) -> Float[Tensor, "b c u v"]:
    """Separable linear transform of each channel, `rows @ x @ cols.T`, in the bases' precision even inside autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x.to(rows.dtype) @ cols.T


def spectrum(x: Float[Tensor, "b c h w"], radius: int | tuple[int, int]) -> Float[Tensor, "b c u v"]:
    """Low-frequency coefficients of every channel in the real orthonormal layout: (B, C, 2*r_h+1, 2*r_w+1), at least float32."""
    r_h, r_w = (radius, radius) if isinstance(radius, int) else radius
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = fourier_basis(x.shape[-2], r_h, dtype).to(x.device)
    return project(x, rows, fourier_basis(x.shape[-1], r_w, dtype).to(x.device))


def complex_halfplane(coefficients: Float[Tensor, "b c u v"]) -> tuple[Float[Tensor, "b c k"], Float[Tensor, "b c k"]]:
    """Real and imaginary part of X[u,v] for one frequency of each conjugate pair, in the order of `halfplane_frequencies`.

    With a = 2 pi u y, b = 2 pi v x: exp(-i(a+b)) = (cos a cos b - sin a sin b) - i (sin a cos b + cos a sin b), and the sign
    of the second factor flips for -v. The basis carries sqrt2 per non-constant axis, hence the factors 1/2 and 1/sqrt2.
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
    """(u, v) of each entry of `complex_halfplane` for a layout of `size` = (2*r_h+1, 2*r_w+1) coefficients."""
    us, vs = range(1, size[0] // 2 + 1), range(1, size[1] // 2 + 1)
    return (
        [(0, 0)]
        + [(u, 0) for u in us]
        + [(0, v) for v in vs]
        + [(u, v) for u in us for v in vs]
        + [(u, -v) for u in us for v in vs]
    )


def rotate(
    coefficients: Float[Tensor, "b c u v"], row_angles: Float[Tensor, " r"], col_angles: Float[Tensor, " s"]
) -> Float[Tensor, "b c u v"]:
    """Turn the (cos, sin) pair of frequency u by `row_angles[u-1]` and of v by `col_angles[v-1]` (radians).

    Angles 2 pi u d are the sampling offset d (in units of the image side): x(y) becomes x(y - d).
    """

    def turn(x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = torch.cos(angles), torch.sin(angles)
        c, s = x[..., 1::2], x[..., 2::2]
        turned = torch.stack((c * cos - s * sin, c * sin + s * cos), -1).flatten(-2)
        return torch.cat((x[..., :1], turned), -1)

    return turn(turn(coefficients, col_angles).mT, row_angles).mT


class Representation(nn.Module):
    """A feature map as K numbers per channel; the same object serves teacher (FTM) and student (FAM). No state is saved.

    Args:
        grid: (H, W) of the maps it will meet.
        size: coefficients kept per axis, (2*r_h+1, 2*r_w+1); cells per axis for the form "area".
        form: "pairs" (cosine and sine coefficients, K = size product), "amplitude" (|X[u,v]| of one frequency per conjugate
            pair, the sign of DC kept: it holds no position), "log-amplitude" (its logarithm), "area" (the spatial twin).
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

    def coefficients(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c u v"]:
        """The linear part, which commutes with any mixing of channels."""
        return project(x, self.rows, self.cols)

    def finish(self, coefficients: Float[Tensor, "b c u v"]) -> Float[Tensor, "b c k"]:
        """The rest: flatten ("pairs", "area"), or forget the phase."""
        if self.form in ("pairs", "area"):
            return coefficients.flatten(-2)
        real, imaginary = complex_halfplane(coefficients)
        # The small constant keeps the gradient finite at a zero of the spectrum, where |X| has a corner.
        amplitude = (real[..., 1:].square() + imaginary[..., 1:].square() + 1e-8).sqrt()
        if self.form == "amplitude":
            return torch.cat((real[..., :1], amplitude), -1)
        return torch.cat(((real[..., :1].square() + 1e-8).sqrt(), amplitude), -1).add(1e-3).log()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c k"]:
        """(B, C, H, W) -> (B, C, K), float32."""
        return self.finish(self.coefficients(x))


def radial_frequencies(size: tuple[int, int], form: Form) -> Float[Tensor, " k"]:
    """sqrt(u^2 + v^2) of each of the K numbers of a representation, in cycles per image; zeros for the form "area"."""
    if form == "area":
        return torch.zeros(size[0] * size[1])
    if form == "pairs":
        axes = [(torch.arange(k) + 1) // 2 for k in size]
        return torch.hypot(axes[0][:, None].float(), axes[1][None].float()).flatten()
    return torch.tensor([math.hypot(u, v) for u, v in halfplane_frequencies(size)])


@dataclass(frozen=True)
class Level:
    """One matched pair of taps (indices, shallow to deep) and the representation that both sides are brought to."""

    student: int
    teacher: int
    size: tuple[int, int]
    form: Form


@dataclass(frozen=True)
class SpectralTarget:
    """What a method asks of the teacher's side in `Signals.spectra`: hashable, so it can be compared and fingerprinted."""

    levels: tuple[Level, ...]
    standardise: Standardise = "coefficient"
    channels: int | None = None


def match_by_depth(students: int, teachers: int) -> list[tuple[int, int]]:
    """Pairs (student tap, teacher tap) at equal relative depth, shallow to deep; the last of both always meet."""
    count = min(students, teachers)
    return [(math.ceil(j * students / count) - 1, math.ceil(j * teachers / count) - 1) for j in range(1, count + 1)]


Maps = Sequence[tuple[int, int, int]]


def match_levels(student: Maps, teacher: Maps, radius: int, form: Form) -> tuple[Level, ...]:
    """Match taps by relative depth and give each pair the largest radius <= `radius` that both grids determine, per axis.

    Args:
        student, teacher: (C, H, W) of the taps, shallow to deep.

    Raises:
        ValueError: for an unknown form, radius < 1, or fewer than two pairs with a frequency beyond the mean.
    """
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r}; expected one of {', '.join(get_args(Form))}")
    if radius < 1:
        raise ValueError(f"radius must be at least 1, got {radius}: radius 0 keeps nothing but the mean")
    levels = []
    for s, t in match_by_depth(len(student), len(teacher)):
        axes = zip(student[s][1:], teacher[t][1:], strict=True)
        size = tuple(2 * min(radius, max_radius(a), max_radius(b)) + 1 for a, b in axes)
        levels.append(Level(s, t, (size[0], size[1]), form))
    if sum(max(level.size) >= 3 for level in levels) < 2:
        grids = ", ".join(f"{student[v.student][1:]} with {teacher[v.teacher][1:]}" for v in levels) or "no taps"
        raise ValueError(
            f"feature maps are too small for spectra: at least two matched levels need grids of 3x3 or more, found {grids}; "
            "use larger images, a smaller patch size, or name shallower taps (student_levels, teacher_levels)"
        )
    return tuple(levels)


class FTM(nn.Module):
    """Feature Transformation Module: teacher maps -> compact, standardised spectra. Nothing in it is trained.

    Per level: low-frequency coefficients -> standardise -> optional fixed channel reduction (PCA). Its statistics come from
    one calibration pass (`calibrate`) and are then frozen. Standardisation subtracts the mean of each coefficient of each
    channel and divides by its own standard deviation ("coefficient"), by the root mean square of the standard deviations of
    the channel's coefficients ("channel"), or does neither ("none").
    Source: FTM of UHKD (arXiv 2510.24116); the form is ours, the paper's abstract leaves it open.
    """

    calibrated: Tensor

    def __init__(self, target: SpectralTarget, maps: Maps) -> None:
        super().__init__()
        if target.standardise not in get_args(Standardise):
            raise ValueError(
                f"unknown standardise {target.standardise!r}; expected one of {', '.join(get_args(Standardise))}"
            )
        self.target = target
        self.represent = nn.ModuleList()
        self.shapes = ftm_shapes(target, maps)
        for i, (level, (channels, k)) in enumerate(zip(target.levels, self.shapes, strict=True)):
            c, h, w = maps[level.teacher]
            self.represent.append(Representation((h, w), level.size, level.form))
            self.register_buffer(f"mean{i}", torch.zeros(c, k))
            self.register_buffer(f"scale{i}", torch.ones(c, k))
            if target.channels is not None:
                self.register_buffer(f"pca{i}", torch.zeros(channels, c))
        self.register_buffer("calibrated", torch.tensor(False))

    def raw(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """Representations before standardisation, one per level."""
        return tuple(rep(maps[lv.teacher]) for rep, lv in zip(self.represent, self.target.levels, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """All the teacher's maps -> one (B, C_target, K) spectrum per level, float32."""
        spectra = []
        for i, x in enumerate(self.raw(maps)):
            x = (x - self.get_buffer(f"mean{i}")) / self.get_buffer(f"scale{i}")
            if self.target.channels is not None:
                with torch.autocast(x.device.type, enabled=False):
                    x = self.get_buffer(f"pca{i}") @ x
            spectra.append(x)
        return tuple(spectra)

    @torch.no_grad()
    def calibrate(self, raw: Sequence[Float[Tensor, "n _ _"]]) -> None:
        """Set mean, scale and PCA of every level from the raw representations of n >= 2 images.

        Raises:
            ValueError: for fewer than two images, or values that are not finite.
        """
        for i, (x, (channels, _)) in enumerate(zip(raw, self.shapes, strict=True)):
            if len(x) < 2 or not x.isfinite().all():
                raise ValueError(
                    f"calibration of level {i} needs at least 2 images with finite teacher features, got {len(x)}"
                    f"{'' if x.isfinite().all() else ' with NaN or infinite values: is the teacher sound?'}"
                )
            x = x.double()
            mean, scale = x.mean(0), torch.ones_like(x[0])
            if self.target.standardise != "none":
                variance = x.var(0, correction=0)
                if self.target.standardise == "channel":
                    variance = variance.mean(-1, keepdim=True).expand_as(variance)
                scale = variance.sqrt().clamp_min(_SPREAD_FLOOR * variance.mean().sqrt().item() or 1.0)
                self.get_buffer(f"mean{i}").copy_(mean)
                self.get_buffer(f"scale{i}").copy_(scale)
                x = (x - mean) / scale
            if self.target.channels is not None:
                rows = x.mT.flatten(0, 1)
                # eigh sorts upwards; the largest components come first and get a fixed sign, so that reruns agree
                components = torch.linalg.eigh(rows.T @ rows / len(rows)).eigenvectors.flip(1)[:, :channels].T
                sign = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
                self.get_buffer(f"pca{i}").copy_(components * sign)
        self.calibrated.fill_(True)


def ftm_shapes(target: SpectralTarget, maps: Maps) -> tuple[tuple[int, int], ...]:
    """(C_target, K) of each level's target spectrum, known before anything is built."""
    shapes = []
    for level in target.levels:
        channels = maps[level.teacher][0]
        k = level.size[0] * level.size[1]
        kept = channels if target.channels is None else min(channels, target.channels)
        shapes.append((kept, k if level.form in ("pairs", "area") else (k + 1) // 2))
    return tuple(shapes)
