"""Weights of unequal classes in the cross-entropy."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uhkd.console import log_info
from uhkd.data import DataSplits, check_balanced
from uhkd.errors import UhkdError
from uhkd.recipe import TrainRecipe, did_you_mean


def weights_of_classes(recipe: TrainRecipe, data: DataSplits) -> Float[Tensor, " k"] | None:
    """Return the weight of each class in the cross-entropy, with a mean of 1 over the training images; None: all equal.

    Raises:
        UhkdError: for weights or balanced sampling without labels, or a class that the data does not have.
    """
    if recipe.sampling == "balanced":
        check_balanced(data.train)
    if recipe.class_weights is None:
        return None
    labels = data.train.labels
    if labels is None:
        raise UhkdError("class_weights: weigh the cross-entropy, and these images have no labels; leave them out")
    counts = np.bincount(labels, minlength=len(data.classes))
    if isinstance(recipe.class_weights, dict):
        weights = np.ones(len(counts))
        for name, weight in recipe.class_weights.items():
            if name not in data.classes:
                hint = did_you_mean(name, data.classes, 1) or f"; its classes: {', '.join(data.classes[:20])}"
                raise UhkdError(f"class_weights: {data.name} has no class {name!r}{hint}")
            weights[data.classes.index(name)] = weight
    else:
        weights = 1 / np.maximum(counts, 1)
    weights *= counts.sum() / (weights @ counts)
    low, high = (int(pick(np.where(counts, weights, np.nan))) for pick in (np.nanargmin, np.nanargmax))
    log_info(
        f"  class weights: {weights[low]:.3g} ({data.classes[low]}) to {weights[high]:.3g} ({data.classes[high]}) in the "
        "cross-entropy, mean 1 over the training images"
    )
    return torch.from_numpy(weights).float()


def cross_entropy(
    logits: Float[Tensor, "b k"],
    target: Float[Tensor, "b k"],
    weights: Float[Tensor, " k"] | None,
    label_smoothing: float,
) -> Tensor:
    """Return the mean cross-entropy; weights: of the classes, by the share of each in the target of an image.

    The mass that label smoothing spreads over all classes has the weight of the image, not of the classes that receive it, which
    would raise the scores of rare classes on every image.
    """
    if weights is None:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    weighted = target * weights
    spread = weighted.sum(1, keepdim=True) / weighted.shape[1]
    return F.cross_entropy(logits, (1 - label_smoothing) * weighted + label_smoothing * spread)
