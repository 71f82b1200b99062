"""Evaluation of frozen embeddings by a linear probe or nearest neighbours, fitted on one split and measured on another."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import Autocast, Evaluation, eval_mode, score
from uhkd.features import FeatureExtractor

Probe = Literal["linear", "knn"]
"""Ways to evaluate frozen embeddings."""
NEIGHBOURS = 20
"""Number of nearest neighbours, each with the weight exp(cosine / 0.07), as usual for self-supervised networks."""
_TEMPERATURE = 0.07
_CHUNK = 1024  # queries per matrix of similarities, to bound memory


@torch.no_grad()
def embed(
    model: FeatureExtractor, batches: Iterable[Batch], device: torch.device, autocast: Autocast = nullcontext
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Return float32 embeddings in eval mode and the labels, both on the CPU.

    Raises:
        UhkdError: the images have no labels, or the network has no embedding.
    """
    embeddings, labels = [], []
    with eval_mode(model):
        for batch in batches:
            if batch.label is None:
                raise UhkdError("these images have no labels to fit a probe on")
            with autocast():
                output = model(batch.image.to(device), frozenset({"embedding"}))
            embeddings.append(output.embedding.float().cpu())
            labels.append(batch.label.cpu())
    return torch.cat(embeddings), torch.cat(labels)


def fit_linear_probe(embedding: Tensor, labels: Tensor, num_classes: int, *, weight_decay: float = 1e-3) -> nn.Linear:
    """Fit multinomial logistic regression to embeddings (N, D), deterministic; their standardisation is folded into the layer."""
    embedding = embedding.detach().float()
    mean, spread = embedding.mean(0), embedding.std(0)
    # a lower bound, so that a feature that is almost constant on these images cannot dominate on others
    spread = spread.clamp_min(max(0.1 * spread.median().item(), 1e-6))
    x = (embedding - mean) / spread
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + weight_decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    probe = nn.Linear(x.shape[1], num_classes)
    with torch.no_grad():
        probe.weight.copy_(weight / spread)
        probe.bias.copy_(bias - (weight / spread) @ mean)
    return probe


def neighbour_logits(
    embeddings: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    queries: Float[Tensor, "n d"],
    num_classes: int,
    neighbours: int = NEIGHBOURS,
) -> Float[Tensor, "n k"]:
    """Return the logarithm of each class's share of the weights exp(cosine / 0.07) of the nearest labelled embeddings.

    At most m neighbours are used. A class without neighbours gets the logarithm of 1e-6.
    """
    embeddings, queries = F.normalize(embeddings, dim=1), F.normalize(queries, dim=1)
    shares = []
    for chunk in queries.split(_CHUNK):
        nearest = (chunk @ embeddings.T).topk(min(neighbours, len(embeddings)), dim=1)
        weights = (nearest.values / _TEMPERATURE).softmax(1)
        shares.append(weights.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[nearest.indices], weights))
    return torch.cat(shares).clamp_min(1e-6).log()


def probe(
    kind: Probe,
    fitted: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]],
    queries: tuple[Float[Tensor, "n d"], Int[Tensor, " n"]],
    num_classes: int,
) -> Evaluation:
    """Fit a probe on embeddings and labels of one split (see `embed`), and evaluate it on those of another."""
    if kind == "knn":
        logits = neighbour_logits(*fitted, queries[0], num_classes)
    else:
        with torch.no_grad():
            logits = fit_linear_probe(*fitted, num_classes)(queries[0])
    return Evaluation(score(logits, queries[1]), logits, queries[1])
