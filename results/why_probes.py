"""What results/why.py asks of features and images, as pure functions: radial bands, linear probes, changed images."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from uhkd.data import stratified_split
from uhkd.spectral import fourier_basis, max_radius, project

WIDEST = 1024  # numbers a probe reads at most
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, in units of the features' mean variance
SEED = 20  # of everything random here; no run's, so that the probes' images are chosen apart from any run's
Change = Callable[[Tensor, Tensor], Tensor]  # images (B,3,H,W) in [0,1] and their positions (B,) -> images


def bands(frequencies: np.ndarray) -> dict[str, list[int]]:
    """Radial bands of coefficients, low to high: name ("DC", "1", "√2", ...) -> positions in frequencies (K,)."""
    squares = np.rint(np.square(frequencies)).astype(int)  # u^2 + v^2: a band is a circle, without bins

    def name(square: int) -> str:
        root = math.isqrt(square)
        return "DC" if square == 0 else str(root) if root**2 == square else f"√{square}"

    return {name(int(s)): np.flatnonzero(squares == s).tolist() for s in np.unique(squares)}


def ridge(x: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Closed-form ridge regression of one-hot labels, the bias free, once a strength.

    x (n, d) float64, labels (n,) -> (weight (d, classes), bias (classes,)) each. The penalty is strength times the mean
    variance of the features.
    """
    y = F.one_hot(labels, classes).to(x)
    mean, prior = x.mean(0), y.mean(0)
    centred = x - mean
    gram, cross = centred.T @ centred / len(x), centred.T @ (y - prior) / len(x)
    unit = gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram)).to(gram)
    weights = [torch.linalg.solve(gram + strength * unit, cross) for strength in strengths]
    return [(weight, prior - mean @ weight) for weight in weights]


def probe(fit: Tensor, fit_labels: Tensor, held: Tensor, held_labels: Tensor, classes: int) -> float:
    """Accuracy on held (m, d) of a linear probe fitted to fit (n, d): standardised, at most WIDEST numbers, in float64.

    The strength is the best on a fifth of the fitting images (of equals the strongest), and then all of them are fitted.
    """
    mean, sd = fit.mean(0), fit.std(0)
    sd = sd.where(sd > 1e-6 * sd.max(), torch.ones_like(sd))  # an inactive channel stays at zero
    x, y = (fit - mean) / sd, (held - mean) / sd
    if x.shape[1] > WIDEST:  # a projection that depends on neither images nor labels
        drawn = torch.randn(x.shape[1], WIDEST, generator=torch.Generator().manual_seed(SEED)).to(x) / WIDEST**0.5
        x, y = x @ drawn, y @ drawn
    x, y = x.double(), y.double()

    def accuracy(seen: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> float:
        return ((seen @ weight + bias).argmax(1) == labels).double().mean().item()

    own, chosen = (torch.from_numpy(part) for part in stratified_split(fit_labels.cpu().numpy(), 0.2, SEED))
    tried = ridge(x[own], fit_labels[own], classes, STRENGTHS)
    scores = [accuracy(x[chosen], fit_labels[chosen], *solution) for solution in tried]
    best = max(zip(scores, STRENGTHS, strict=True))[1]
    return accuracy(y, held_labels, *ridge(x, fit_labels, classes, [best])[0])


def noise(images: Tensor, index: Tensor, sd: float) -> Tensor:
    """Gaussian noise, cut to [0, 1]: independent per image and of the batch, the same pattern for every sd."""
    drawn = [np.random.default_rng((SEED, int(i))).standard_normal(images.shape[1:], np.float32) for i in index]
    return (images + sd * torch.from_numpy(np.stack(drawn)).to(images)).clamp(0, 1)


def shift(images: Tensor, index: Tensor, pixels: int) -> Tensor:
    """Moved by `pixels` right, down, left or up, in turn by position; the border is reflected."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (pixels,) * 4, mode="reflect")
    starts = [(pixels, 0), (0, pixels), (pixels, 2 * pixels), (2 * pixels, pixels)]  # (row, column) of the window
    windows = [padded[..., row : row + height, column : column + width] for row, column in starts]
    turn = (index % 4).to(images.device)[:, None, None, None]
    return sum((window * (turn == k) for k, window in enumerate(windows)), torch.zeros_like(images))


def blur(images: Tensor, index: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; the kernel reaches three sigma."""
    return gaussian_blur(images, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)


def smooth(images: Tensor, radius: int) -> Tensor:
    """Only frequencies of at most `radius` cycles per image, per axis; may leave [0, 1]."""
    height, width = images.shape[-2:]
    rows, cols = (fourier_basis(n, min(radius, max_radius(n))).to(images.device) for n in (height, width))
    return height * width * (rows.T @ project(images, rows, cols) @ cols)  # the basis is orthonormal over the cells


def low_pass(images: Tensor, index: Tensor, radius: int) -> Tensor:
    """Without frequencies above `radius` cycles per image, per axis."""
    return smooth(images, radius).clamp(0, 1)


def high_pass(images: Tensor, index: Tensor, radius: int) -> Tensor:
    """Without frequencies of 1 to `radius` cycles per image, per axis; the mean colour stays."""
    return (images - smooth(images, radius) + images.mean((2, 3), keepdim=True)).clamp(0, 1)


CHANGES: dict[str, Change] = {"clean": lambda images, index: images} | {
    f"{made.__name__.replace('_', '-')} {size}": lambda images, index, made=made, size=size: made(images, index, size)
    for made, sizes in ((noise, (0.05, 0.1)), (blur, (1, 2)), (shift, (2, 4)), (low_pass, (4,)), (high_pass, (2,)))
    for size in sizes
}
