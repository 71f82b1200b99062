"""What frozen embeddings know of labels: a linear probe or nearest neighbours, fitted on one part and measured on another."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import Evaluation, score
from uhkd.features import FeatureExtractor

Probe = Literal["linear", "knn"]
"""How frozen embeddings are judged."""
Autocast = Callable[[], AbstractContextManager]
"""Makes the context that sets the precision of a forward pass."""

NEIGHBOURS = 20
"""How many vote, by exp(cosine / 0.07) each, as usual for self-supervised networks."""
_TEMPERATURE = 0.07
_CHUNK = 1024  # images whose similarities to all others lie in memory at a time


@torch.no_grad()
def embed(
    model: FeatureExtractor, batches: Iterable[Batch], device: torch.device, autocast: Autocast = nullcontext
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Embeddings in eval mode and labels of labelled batches, on the CPU, embeddings as float32; the model's mode is put back.

    Raises:
        UhkdError: when the images have no labels, or the network no embedding.
    """
    training = model.training
    model.eval()
    embeddings, labels = [], []
    try:
        for batch in batches:
            if batch.label is None:
                raise UhkdError("these images have no labels to fit a probe on")
            with autocast():
                output = model(batch.image.to(device), frozenset({"embedding"}))
            embeddings.append(output.embedding.float().cpu())
            labels.append(batch.label.cpu())
    finally:
        model.train(training)
    return torch.cat(embeddings), torch.cat(labels)


def fit_linear_probe(embedding: Tensor, labels: Tensor, num_classes: int, *, weight_decay: float = 1e-3) -> nn.Linear:
    """Multinomial logistic regression on frozen embeddings (N, D), deterministic; standardisation is folded into the layer."""
    embedding = embedding.detach().float()
    mean, spread = embedding.mean(0), embedding.std(0)
    # a feature that sleeps on these images and wakes up on others must not shout
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
    known: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    queries: Float[Tensor, "n d"],
    num_classes: int,
    neighbours: int = NEIGHBOURS,
) -> Float[Tensor, "n k"]:
    """Logarithms of each class's share among the votes of the nearest known embeddings; a vote weighs exp(cosine / 0.07).

    Fewer neighbours where fewer are known. A class without a vote gets the logarithm of 1e-6.
    """
    known, queries = F.normalize(known, dim=1), F.normalize(queries, dim=1)
    shares = []
    for part in queries.split(_CHUNK):
        near = (part @ known.T).topk(min(neighbours, len(known)), dim=1)
        votes = (near.values / _TEMPERATURE).softmax(1)
        shares.append(votes.new_zeros(len(part), num_classes).scatter_add_(1, labels[near.indices], votes))
    return torch.cat(shares).clamp_min(1e-6).log()


def probe(
    kind: Probe,
    known: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]],
    queries: tuple[Float[Tensor, "n d"], Int[Tensor, " n"]],
    num_classes: int,
) -> Evaluation:
    """Fit a probe on the embeddings and labels of one part (see `embed`) and measure it on those of another."""
    if kind == "knn":
        logits = neighbour_logits(*known, queries[0], num_classes)
    else:
        with torch.no_grad():
            logits = fit_linear_probe(*known, num_classes)(queries[0])
    return Evaluation(score(logits, queries[1]), logits, queries[1])
