"""Literal, slow twins of the losses in uhkd.methods: loops straight from the definitions, float64, from maps to loss."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from references.spectral import coefficient, real_spectrum

Size = tuple[int, int]


def softmax(row: Sequence[float], temperature: float) -> list[float]:
    """exp(z_i / T) / sum_j exp(z_j / T)."""
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 * sum_i q_i log(q_i / p_i), q the teacher's and p the student's softened classes, mean over the batch."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for p, q in zip(softmax(s, temperature), softmax(t, temperature), strict=True):
            total += q * math.log(q / p)
    return temperature**2 * total / len(student)


def soft_targets_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """d soft_targets / d student logits = T (p - q) / B."""
    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = zip(softmax(s, temperature), softmax(t, temperature), strict=True)
        rows.append([temperature * (p - q) / len(student) for p, q in pairs])
    return torch.tensor(rows, dtype=torch.float64)


def weighted_error(predicted: Tensor, target: Tensor, weights: Sequence[float]) -> float:
    """1/(B C) sum_{b,c} sum_k w_k (predicted - target)^2."""
    batch, channels, count = predicted.shape
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            for k in range(count):
                total += weights[k] * (predicted[b, c, k].item() - target[b, c, k].item()) ** 2
    return total / (batch * channels)


def area_pool(x: Tensor, size: Size) -> Tensor:
    """Mean of a map (H, W) over each cell of a coarser grid: every value counts by the area it shares with the cell."""
    height, width = x.shape
    out = torch.zeros(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            for h in range(height):
                for w in range(width):
                    down = min((i + 1) / size[0], (h + 1) / height) - max(i / size[0], h / height)
                    along = min((j + 1) / size[1], (w + 1) / width) - max(j / size[1], w / width)
                    if down > 0 and along > 0:
                        out[i, j] += x[h, w].item() * down * along * size[0] * size[1]
    return out


def frequencies(size: Size) -> list[tuple[int, int]]:
    """One (u, v) of each conjugate pair within the radii: the mean, the two axes, then both quadrants."""
    r_h, r_w = size[0] // 2, size[1] // 2
    found = [(0, 0)] + [(u, 0) for u in range(1, r_h + 1)] + [(0, v) for v in range(1, r_w + 1)]
    for sign in (1, -1):
        found += [(u, sign * v) for u in range(1, r_h + 1) for v in range(1, r_w + 1)]
    return found


def numbers(x: Tensor, size: Size, form: str) -> list[float]:
    """The K numbers of one map (H, W)."""
    if form == "area":
        return area_pool(x, size).flatten().tolist()
    if form == "pairs":
        return real_spectrum(x, size[0] // 2, size[1] // 2).flatten().tolist()
    out = []
    for u, v in frequencies(size):
        value = coefficient(x, u, v)
        amplitude = math.sqrt(abs(value) ** 2 + 1e-8)
        if (u, v) == (0, 0):
            out.append(value.real)
        else:
            out.append(amplitude if form == "amplitude" else math.log(amplitude + 1e-3))
    return out


def all_numbers(maps: Tensor, size: Size, form: str) -> Tensor:
    """`numbers` of every map of (B, C, H, W): (B, C, K)."""
    return torch.tensor([[numbers(x, size, form) for x in image] for image in maps], dtype=torch.float64)


def weights_of(size: Size, form: str, standardise: str, decay: float) -> list[float]:
    """(1 + |frequency|)^-decay of each number; summing to 1 unless the numbers are raw coefficients."""
    if form == "area":
        return [1 / (size[0] * size[1])] * (size[0] * size[1])
    if form == "pairs":
        orders = [((i + 1) // 2, (j + 1) // 2) for i in range(size[0]) for j in range(size[1])]
    else:
        orders = frequencies(size)
    found = [(1 + math.sqrt(u * u + v * v)) ** -decay for u, v in orders]
    return found if standardise == "none" else [w / sum(found) for w in found]


def ftm(maps: Tensor, calibration: Tensor, size: Size, form: str, standardise: str) -> Tensor:
    """Teacher maps -> standardised numbers, with the mean and spread of the calibration images' numbers."""
    known, out = all_numbers(calibration, size, form), all_numbers(maps, size, form)
    if standardise == "none":
        return out
    images, channels, count = known.shape
    mean, variance = torch.zeros(channels, count).double(), torch.zeros(channels, count).double()
    for c in range(channels):
        for k in range(count):
            mean[c, k] = sum(known[n, c, k].item() for n in range(images)) / images
            variance[c, k] = sum((known[n, c, k].item() - mean[c, k].item()) ** 2 for n in range(images)) / images
    for b in range(len(out)):
        for c in range(channels):
            for k in range(count):
                spread = variance[c, k].item()
                if standardise == "channel":
                    spread = sum(variance[c].tolist()) / count
                out[b, c, k] = (out[b, c, k].item() - mean[c, k].item()) / math.sqrt(spread)
    return out


def fam(maps: Tensor, mix: Tensor, gain: Tensor, bias: Tensor, size: Size, form: str) -> Tensor:
    """Student maps -> 1x1 channel mix -> numbers -> standardised over the batch -> gain and bias of each number."""
    batch, channels, height, width = maps.shape
    mixed = torch.zeros(batch, len(mix), height, width, dtype=torch.float64)
    for b in range(batch):
        for d in range(len(mix)):
            for c in range(channels):
                mixed[b, d] += mix[d, c].item() * maps[b, c]
    out = all_numbers(mixed, size, form)
    for d in range(out.shape[1]):
        for k in range(out.shape[2]):
            values = [out[b, d, k].item() for b in range(batch)]
            mean = sum(values) / batch
            variance = sum((v - mean) ** 2 for v in values) / batch
            for b in range(batch):
                standard = (values[b] - mean) / math.sqrt(variance + 1e-5)
                out[b, d, k] = gain[d, k].item() * standard + bias[d, k].item()
    return out


def relations(predicted, target) -> float:
    """Mean over ordered pairs of two images of the squared difference of their cosine similarities, image by image."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    count, total = len(predicted), 0.0
    flat = [[[float(v) for v in image.flatten()] for image in side] for side in (predicted, target)]
    for i in range(count):
        for j in range(count):
            if i != j:
                student, teacher = (cosine(side[i], side[j]) for side in flat)
                total += (student - teacher) ** 2
    return total / (count * (count - 1))
