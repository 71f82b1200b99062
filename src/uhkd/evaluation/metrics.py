"""What a network is worth on held-out images: accuracy, calibration, agreement, speed; and how its features compare."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.spectral import max_radius, radial_frequencies, spectrum

EVAL_BATCH = 256
"""Images at a time in validation."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name (accuracy and top5 as fractions, nll in nats, ece as a fraction), logits and labels in data order."""

    metrics: dict[str, float]
    logits: Float[Tensor, "n k"]
    labels: Int[Tensor, " n"]

    @property
    def correct(self) -> int:
        """Number of images named right."""
        return int((self.logits.argmax(1) == self.labels).sum())

    def confusion(self) -> Int[Tensor, "k k"]:
        """Counts by (true class, named class)."""
        return multiclass_confusion_matrix(self.logits, self.labels, num_classes=self.logits.shape[1])


@torch.no_grad()
def predict_logits(
    model: FeatureExtractor,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, " n"] | None]:
    """Logits in eval mode and labels if there are any, both on the CPU, logits as float32; the model's mode is put back."""
    training = model.training
    model.eval()
    logits, labels = [], []
    try:
        for batch in batches:
            with autocast():
                output = model(batch.image.to(device), frozenset({"logits"})).logits
            logits.append(output.float().cpu())
            labels.append(None if batch.label is None else batch.label.cpu())
    finally:
        model.train(training)
    return torch.cat(logits), None if labels[0] is None else torch.cat(labels)


def score(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """accuracy, top5 (from 6 classes on), nll, ece (15 bins)."""
    k = logits.shape[1]
    metrics = {"accuracy": multiclass_accuracy(logits, labels, num_classes=k, average="micro").item()}
    if k > 5:
        metrics["top5"] = multiclass_accuracy(logits, labels, num_classes=k, top_k=5, average="micro").item()
    metrics["nll"] = torch.nn.functional.cross_entropy(logits, labels).item()
    metrics["ece"] = multiclass_calibration_error(logits.softmax(1), labels, num_classes=k, n_bins=15).item()
    return metrics


def evaluate(
    model: FeatureExtractor,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Evaluation:
    """Run a network over labelled batches.

    Raises:
        UhkdError: when the images have no labels, or the network another number of classes.
    """
    logits, labels = predict_logits(model, batches, device, autocast)
    if labels is None:
        raise UhkdError("these images have no labels to evaluate on")
    if int(labels.max()) >= logits.shape[1]:
        raise UhkdError(f"the data has a label {int(labels.max())}, the network only {logits.shape[1]} classes")
    return Evaluation(score(logits, labels), logits, labels)


def radial_spectrum(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " r"]:
    """Mean energy by integer radius 0, 1, 2, ... of all frequencies the grid determines, mean over batch and channels."""
    radius = (max_radius(x.shape[-2]), max_radius(x.shape[-1]))
    energy = spectrum(x.float(), radius).square().mean((0, 1)).flatten()
    bins = radial_frequencies((2 * radius[0] + 1, 2 * radius[1] + 1), "pairs").round().long().to(energy.device)
    return torch.zeros(int(bins.max()) + 1, device=energy.device).index_add_(0, bins, energy)


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    """Linear centred kernel alignment of n >= 4 paired samples (Kornblith et al. 2019, section 3), debiased.

    With the unbiased estimate of HSIC (Song et al. 2012, eq. 5): about 0 for unrelated features however wide they are, where
    the plain estimate nears 1 once the width exceeds n; 1 for features equal up to rotation and scale. Cut to [0, 1].
    """
    grams = [v.double() @ v.double().T for v in (x, y)]
    cross, own_x, own_y = (_unbiased_hsic(a, b) for a, b in (grams, (grams[0], grams[0]), (grams[1], grams[1])))
    if own_x <= 0 or own_y <= 0:
        return 0.0
    return min(max(cross / (own_x * own_y) ** 0.5, 0.0), 1.0)


def _unbiased_hsic(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"]) -> float:
    """Up to the factor n (n - 3), which cancels in CKA."""
    n = len(k)
    k, m = (g - g.diag().diag() for g in (k, m))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return total.item()


def cka_matrix(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Float[Tensor, "s t"]:
    """Linear CKA of every student map with every teacher map, each (N, C, H, W) and pooled over space: (levels, levels)."""
    pooled = [[m.float().mean((2, 3)) for m in side] for side in (students, teachers)]
    return torch.tensor([[linear_cka(s, t) for t in pooled[1]] for s in pooled[0]])


@torch.no_grad()
def latency(model: FeatureExtractor, batch: int = 1, repeats: int = 20) -> float:
    """Median milliseconds of one forward pass in eval mode at the model's own input size, after three warm-up passes."""
    device = next(model.parameters()).device
    image = torch.rand(batch, 3, *model.input_size, device=device)
    want = _answer(model)
    training = model.training
    model.eval()
    times = []
    for i in range(repeats + 3):
        began = time.perf_counter()
        model(image, want)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 3:
            times.append(time.perf_counter() - began)
    model.train(training)
    return 1000 * sorted(times)[len(times) // 2]


@torch.no_grad()
def forward_flops(model: FeatureExtractor) -> int:
    """FLOPs of one image in eval mode: matrix products, convolutions and attention, two for each multiply-add."""
    parameter, training = next(model.parameters()), model.training
    model.eval()
    image = torch.zeros(1, 3, *model.input_size, device=parameter.device)
    # attention in its plain form: each device's fused kernels count in another way
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(image, _answer(model))
    model.train(training)
    return counter.get_total_flops()


def _answer(model: FeatureExtractor) -> frozenset[str]:
    """What a network is used for: its logits, or its embedding where it has no head."""
    return frozenset({"logits" if model.shapes.logits else "embedding"})
