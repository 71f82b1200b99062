"""Literal, slow twins of the rival methods' losses: loops straight from the formulas, in float64."""

import cmath
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from references.methods import softmax

Vector = Sequence[float]


def kl(q: Vector, p: Vector) -> float:
    """sum_k q_k log(q_k / p_k)."""
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))


def dkd(student: Tensor, teacher: Tensor, labels: Sequence[int], temperature: float) -> tuple[float, float]:
    """TCKD over (target, all others) and NCKD over the others renormalised, each T^2 KL, mean over the batch."""
    tckd = nckd = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        p, q = softmax(s, temperature), softmax(t, temperature)
        tckd += kl((q[y], 1 - q[y]), (p[y], 1 - p[y]))
        rest = [k for k in range(len(p)) if k != y]
        nckd += kl([q[k] / (1 - q[y]) for k in rest], [p[k] / (1 - p[y]) for k in rest])
    return temperature**2 * tckd / len(student), temperature**2 * nckd / len(student)


def others_kl(student: Tensor, teacher: Tensor, labels: Sequence[int]) -> float:
    """KL of softmax over the classes but the label's, at T = 1, mean over the batch."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        p, q = ([math.exp(row[k]) for k in range(len(row)) if k != y] for row in (s, t))
        total += kl([x / sum(q) for x in q], [x / sum(p) for x in p])
    return total / len(student)


def z_scores(logits: Tensor) -> Tensor:
    """(x - mean) / (1e-7 + std) of each row, std with K - 1."""
    rows = []
    for row in logits.tolist():
        mean = sum(row) / len(row)
        std = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
        rows.append([(x - mean) / (1e-7 + std) for x in row])
    return torch.tensor(rows, dtype=torch.float64)


def pearson(a: Vector, b: Vector) -> float:
    """Correlation of two lists of numbers."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    joint = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a)) * math.sqrt(sum((y - mean_b) ** 2 for y in b))
    return joint / (spread + 1e-8)


def dist(student: Tensor, teacher: Tensor, temperature: float) -> tuple[float, float]:
    """T^2 (1 - mean correlation) over the images' rows and over the classes' columns of the probabilities."""
    p = [softmax(row, temperature) for row in student.tolist()]
    q = [softmax(row, temperature) for row in teacher.tolist()]
    rows = [pearson(a, b) for a, b in zip(p, q, strict=True)]
    columns = [pearson(a, b) for a, b in zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)]
    inter, intra = (temperature**2 * (1 - sum(found) / len(found)) for found in (rows, columns))
    return inter, intra


def windows(long: int, short: int) -> list[range]:
    """What each of `short` pooled cells averages of `long` ones: from floor(i L / S) to ceil((i + 1) L / S)."""
    return [range(i * long // short, -(-(i + 1) * long // short)) for i in range(short)]


def pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """Mean of (A, B, C) over the windows of a coarser grid of the given three sizes."""
    out = torch.zeros(*size, dtype=torch.float64)
    axes = [windows(n, k) for n, k in zip(x.shape, size, strict=True)]
    for i, first in enumerate(axes[0]):
        for j, second in enumerate(axes[1]):
            for k, third in enumerate(axes[2]):
                cells = [x[a, b, c].item() for a in first for b in second for c in third]
                out[i, j, k] = sum(cells) / len(cells)
    return out


def common_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two (C, H, W) maps, both pooled to the smaller height and width."""
    size = (min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2]))
    return pool(a, (a.shape[0], *size)), pool(b, (b.shape[0], *size))


def attention(x: Tensor, power: int) -> list[float]:
    """Mean over channels of |x|^p at each cell, divided by the length of that vector."""
    channels, height, width = x.shape
    values = [
        sum(abs(x[c, h, w].item()) ** power for c in range(channels)) / channels
        for h in range(height)
        for w in range(width)
    ]
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values]


def at(students: Sequence[Tensor], teachers: Sequence[Tensor], power: int) -> float:
    """Sum over levels of the mean over images and cells of (a_s - a_t)^2."""
    total = 0.0
    for ours, theirs in zip(students, teachers, strict=True):
        errors = []
        for x, y in zip(ours, theirs, strict=True):
            pair = [attention(m, power) for m in common_grid(x, y)]
            errors += [(a - b) ** 2 for a, b in zip(*pair, strict=True)]
        total += sum(errors) / len(errors)
    return total


def fitnet(students: Sequence[Tensor], teachers: Sequence[Tensor], mixes: Sequence[Tensor]) -> float:
    """Sum over levels of the mean of (W s - t)^2 on the smaller grid, W applied before pooling."""
    total = 0.0
    for ours, theirs, mix in zip(students, teachers, mixes, strict=True):
        errors = []
        for x, y in zip(ours, theirs, strict=True):
            mixed = torch.zeros(len(mix), *x.shape[1:], dtype=torch.float64)
            for d in range(len(mix)):
                for c in range(len(x)):
                    mixed[d] += mix[d, c].item() * x[c]
            a, b = common_grid(mixed, y)
            errors += [(p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
        total += sum(errors) / len(errors)
    return total


def half_spectrum(x: Tensor) -> list[complex]:
    """1/sqrt(HW) sum x[h,w] exp(-2 pi i (u h / H + v w / W)) for all u and 0 <= v <= W/2."""
    height, width = x.shape
    out = []
    for u in range(height):
        for v in range(width // 2 + 1):
            value = 0j
            for h in range(height):
                for w in range(width):
                    value += x[h, w].item() * cmath.exp(-2j * math.pi * (u * h / height + v * w / width))
            out.append(value / math.sqrt(height * width))
    return out


def spectralkd(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> float:
    """Mean over levels of the mean squared difference of real and imaginary parts, on the fewer channels."""
    levels = []
    for ours, theirs in zip(students, teachers, strict=True):
        errors = []
        for x, y in zip(ours, theirs, strict=True):
            a, b = common_grid(x, y)
            count = min(len(a), len(b))
            a, b = (pool(m, (count, *m.shape[1:])) for m in (a, b))
            for c in range(count):
                for p, q in zip(half_spectrum(a[c]), half_spectrum(b[c]), strict=True):
                    errors += [(p - q).real ** 2, (p - q).imag ** 2]
        levels.append(sum(errors) / len(errors))
    return sum(levels) / len(levels)


def linear(row: Vector, weight: Tensor, bias: Tensor | None = None) -> list[float]:
    """W x + b."""
    added = [0.0] * len(weight) if bias is None else bias.tolist()
    return [sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in zip(weight.tolist(), added, strict=True)]


def cc(student: Sequence[Vector], teacher: Sequence[Vector]) -> float:
    """Mean over neighbours of sum_d |s - t|_b,d |s - t|_b+1,d."""
    gaps = [[abs(x - y) for x, y in zip(a, b, strict=True)] for a, b in zip(student, teacher, strict=True)]
    found = [sum(x * y for x, y in zip(a, b, strict=True)) for a, b in pairwise(gaps)]
    return sum(found) / len(found)


def smooth_l1(x: float) -> float:
    """x^2 / 2 within [-1, 1], |x| - 1/2 outside."""
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def rkd(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Smooth L1 of distances over their mean, and of cosines at i between j and k; means over all pairs and triples."""
    count = len(student)
    distances, cosines = [], []
    for x in (student.tolist(), teacher.tolist()):
        found = [[math.dist(a, b) for b in x] for a in x]
        mean = sum(map(sum, found)) / (count * (count - 1))
        distances.append([d / mean for row in found for d in row])
        angles = []
        for i in range(count):
            for j in range(count):
                for k in range(count):
                    if i in (j, k):
                        angles.append(0.0)
                        continue
                    dot = sum((a - o) * (b - o) for o, a, b in zip(x[i], x[j], x[k], strict=True))
                    angles.append(dot / (found[i][j] * found[i][k]))
        cosines.append(angles)
    terms = ([smooth_l1(a - b) for a, b in zip(*pair, strict=True)] for pair in (distances, cosines))
    distance, angle = (sum(found) / len(found) for found in terms)
    return distance, angle


def unit(row: Vector) -> list[float]:
    """A vector divided by its length."""
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def crd_side(
    anchors: Sequence[Vector],
    bank: Sequence[Vector],
    index: Sequence[int],
    negatives: Sequence[Sequence[int]],
    temperature: float,
    z: float | None,
) -> tuple[float, float]:
    """(loss, Z) of one side: -1/B sum over images of log D(positive) + sum over draws of log (1 - D(draw)).

    D = p / (p + K/N + 1e-7) of p = exp(<anchor, row> / T) / Z; 1 - D stands for (K/N) / (p + K/N + 1e-7). Z, unless given,
    is N times the mean of all exponentials of this batch.
    """
    count = len(bank)
    found = [
        [math.exp(sum(a * b for a, b in zip(anchor, bank[j], strict=True)) / temperature) for j in (i, *draws)]
        for anchor, i, draws in zip(anchors, index, negatives, strict=True)
    ]
    everything = [value for row in found for value in row]
    z = count * sum(everything) / len(everything) if z is None else z
    loss, noise = 0.0, (len(found[0]) - 1) / count
    for row in found:
        for k, value in enumerate(row):
            p = value / z
            loss -= math.log((p if k == 0 else noise) / (p + noise + 1e-7))
    return loss / len(found), z


def moved(row: Vector, new: Vector, momentum: float) -> list[float]:
    """A bank's row after it has taken in a new embedding."""
    return unit([momentum * a + (1 - momentum) * b for a, b in zip(row, new, strict=True)])


def ofa(student: Tensor, teacher: Tensor, labels: Sequence[int], eps: float, temperature: float) -> float:
    """-1/B sum_b sum_k [(q_k + 1[k = y])^eps - 1[k = y]] log p_k."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        p, q = softmax(s, temperature), softmax(t, temperature)
        for k in range(len(p)):
            total -= ((q[k] + (k == y)) ** eps - (k == y)) * math.log(p[k])
    return total / len(student)


def standardised(rows: Sequence[Vector]) -> list[list[float]]:
    """Each column minus its mean, over its population deviation plus 1e-5."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))
        columns.append([(x - mean) / (deviation + 1e-5) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


def rsd(student: Sequence[Vector], teacher: Sequence[Vector], kappa: float) -> float:
    """sum_ij (P_ij - I_ij)^2, off the diagonal times kappa; P_ij = 1/B sum_b t_bi s_bj of standardised embeddings."""
    s, t = standardised(student), standardised(teacher)
    total = 0.0
    for i in range(len(t[0])):
        for j in range(len(s[0])):
            product = sum(t[b][i] * s[b][j] for b in range(len(s))) / len(s)
            total += (product - 1) ** 2 if i == j else kappa * product**2
    return total


def batch_norm(rows: Sequence[Vector]) -> list[list[float]]:
    """Each column standardised with 1e-5 added to its population variance."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        columns.append([(x - mean) / math.sqrt(variance + 1e-5) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


def gelu(x: float) -> float:
    """x times the normal distribution's mass below x."""
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def merge_patches(x: Tensor, mix: Tensor, act: Callable[[float], float]) -> Tensor:
    """Patch merging of one (C, H, W) map: 2 x 2 neighbours (down first) joined, layer-normed, mixed, activated."""
    channels, height, width = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    out = torch.zeros(len(mix), rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            joined = []
            for right in (0, 1):
                for down in (0, 1):
                    h, w = 2 * i + down, 2 * j + right
                    inside = h < height and w < width
                    joined += [x[c, h, w].item() if inside else 0.0 for c in range(channels)]
            mean = sum(joined) / len(joined)
            variance = sum((v - mean) ** 2 for v in joined) / len(joined)
            normed = [(v - mean) / math.sqrt(variance + 1e-5) for v in joined]
            for d, value in enumerate(linear(normed, mix)):
                out[d, i, j] = act(value)
    return out
