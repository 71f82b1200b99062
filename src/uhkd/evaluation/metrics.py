"""Metrics of networks on held-out images: accuracy, calibration, speed, FLOPs, and similarity of features."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
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
from uhkd.spectral import as_double, max_radius, radial_frequencies, spectrum

EVAL_BATCH = 256
"""Batch size of validation."""
REPEATS = 20
"""Forward passes of which the median is the latency."""
Autocast = Callable[[], AbstractContextManager]
"""Creates the context that sets the precision of a forward pass."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name (accuracy, top5 and ece as fractions, nll in nats), logits and labels in the order of the data."""

    metrics: dict[str, float]
    logits: Float[Tensor, "n k"]
    labels: Int[Tensor, " n"]

    @property
    def correct(self) -> int:
        """Number of correctly classified images."""
        return int((self.logits.argmax(1) == self.labels).sum())

    def confusion(self) -> Int[Tensor, "k k"]:
        """Return counts by (true class, predicted class)."""
        return multiclass_confusion_matrix(self.logits, self.labels, num_classes=self.logits.shape[1])


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for the duration of the context, then restore its mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def predict_logits(
    model: FeatureExtractor, batches: Iterable[Batch], device: torch.device, autocast: Autocast = nullcontext
) -> tuple[Float[Tensor, "n k"], Int[Tensor, " n"] | None]:
    """Return float32 logits in eval mode, and the labels or None, both on the CPU."""
    logits, labels = [], []
    with eval_mode(model):
        for batch in batches:
            with autocast():
                output = model(batch.image.to(device), frozenset({"logits"})).logits
            logits.append(output.float().cpu())
            labels.append(None if batch.label is None else batch.label.cpu())
    return torch.cat(logits), None if labels[0] is None else torch.cat(labels)


def score(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Return accuracy, top5 (with more than 5 classes), nll and ece (15 bins)."""
    k = logits.shape[1]
    metrics = {"accuracy": multiclass_accuracy(logits, labels, num_classes=k, average="micro").item()}
    if k > 5:
        metrics["top5"] = multiclass_accuracy(logits, labels, num_classes=k, top_k=5, average="micro").item()
    metrics["nll"] = torch.nn.functional.cross_entropy(logits, labels).item()
    metrics["ece"] = multiclass_calibration_error(logits.softmax(1), labels, num_classes=k, n_bins=15).item()
    return metrics


def gap(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """Return mean confidence minus accuracy, above 0 where the network is too confident."""
    confidence, prediction = logits.softmax(1).max(1)
    return float((confidence.double() - (prediction == labels).double()).mean())


def evaluate(
    model: FeatureExtractor, batches: Iterable[Batch], device: torch.device, autocast: Autocast = nullcontext
) -> Evaluation:
    """Evaluate a network on labelled batches.

    Raises:
        UhkdError: the images have no labels, or a label is beyond the classes of the network.
    """
    logits, labels = predict_logits(model, batches, device, autocast)
    if labels is None:
        raise UhkdError("these images have no labels to evaluate on")
    if int(labels.max()) >= logits.shape[1]:
        raise UhkdError(f"the data has a label {int(labels.max())}, the network only {logits.shape[1]} classes")
    return Evaluation(score(logits, labels), logits, labels)


def radial_spectrum(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " r"]:
    """Return the mean energy at integer radii 0, 1, 2, ... over all frequencies of the grid, averaged over batch and channels."""
    radius = (max_radius(x.shape[-2]), max_radius(x.shape[-1]))
    energy = spectrum(x.float(), radius).square().mean((0, 1)).flatten()
    bins = radial_frequencies((2 * radius[0] + 1, 2 * radius[1] + 1), "pairs").round().long().to(energy.device)
    return torch.zeros(int(bins.max()) + 1, device=energy.device).index_add_(0, bins, energy)


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    """Return the debiased linear centred kernel alignment of n >= 4 paired samples (Kornblith et al. 2019, section 3).

    HSIC is estimated without bias (Song et al. 2012, eq. 5): CKA is about 0 for unrelated features of any width, for which the
    biased estimate approaches 1 once the width exceeds n, and 1 for features equal up to rotation and scale. Clamped to [0, 1].
    """
    grams = [v @ v.T for v in map(as_double, (x, y))]
    xy, xx, yy = (_unbiased_hsic(a, b) for a, b in (grams, (grams[0], grams[0]), (grams[1], grams[1])))
    if xx <= 0 or yy <= 0:
        return 0.0
    return min(max(xy / (xx * yy) ** 0.5, 0.0), 1.0)


def _unbiased_hsic(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"]) -> float:
    """Return the unbiased HSIC times n (n - 3), a factor that cancels in CKA."""
    n = len(k)
    k, m = (g - g.diag().diag() for g in (k, m))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return total.item()


def cka_matrix(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Float[Tensor, "s t"]:
    """Return the linear CKA of each student map with each teacher map, maps (N, C, H, W) averaged over space."""
    pooled = [[m.float().mean((2, 3)) for m in side] for side in (students, teachers)]
    return torch.tensor([[linear_cka(s, t) for t in pooled[1]] for s in pooled[0]])


@torch.no_grad()
def latency(model: FeatureExtractor, batch: int = 1, repeats: int = REPEATS) -> float:
    """Return the median milliseconds of a forward pass in eval mode at the model's input size, after three warm-up passes."""
    device = next(model.parameters()).device
    image = torch.rand(batch, 3, *model.input_size, device=device)

    def step() -> None:
        model(image, _final_output(model))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    with eval_mode(model):
        return median_milliseconds(step, repeats)


def median_milliseconds(step: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median duration of a call in ms, after three calls to warm up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median_high(times[3:])


def count_flops(run: Callable[[], object]) -> int:
    """Return the FLOPs of a call: matrix products, convolutions, attention, also backward; a multiply-add counts twice."""
    # attention in its plain form: the fused kernels of each device count differently
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@torch.no_grad()
def forward_flops(model: FeatureExtractor) -> int:
    """Return the FLOPs of one image in eval mode (see `count_flops`)."""
    image = torch.zeros(1, 3, *model.input_size, device=next(model.parameters()).device)
    with eval_mode(model):
        return count_flops(lambda: model(image, _final_output(model)))


def _final_output(model: FeatureExtractor) -> frozenset[str]:
    """Return the field of `NetworkOutput` to compute: logits, or the embedding of a network without a head."""
    return frozenset({"logits" if model.shapes.logits else "embedding"})
