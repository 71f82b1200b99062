"""Batches of a user's training loop: from tensors to `Batch`, with the checks that `Distillation` makes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uhkd.data import Batch
from uhkd.errors import UhkdError

_MARGIN = 0.5  # resizing exceeds [0, 1] by less, normalised images and bytes by more


def make_batch(
    images: Tensor, labels: Tensor | None, indices: Tensor | None, *, num_classes: int, num_samples: int | None
) -> Batch:
    """Return a batch of images (B, 3, H, W) in [0, 1].

    labels: classes (B,), or class probabilities (B, num_classes), or None. indices: (B,) of the images among `num_samples`
    training images, or None; num_samples None: not checked.

    Raises:
        UhkdError: for a label or an index out of range, in tensors on the CPU (on a GPU the check would make it wait).
    """
    target = label = None
    if labels is not None:
        soft = labels.is_floating_point()
        if not soft:
            _check_below(labels, num_classes, "labels", "num_classes")
        target = labels if soft else F.one_hot(labels.long(), num_classes).float()
        label = labels.argmax(1) if soft else labels.long()
    if indices is None:
        indices = torch.full((len(images),), -1, device=images.device)
    elif num_samples is not None:
        _check_below(indices, num_samples, "indices", "num_samples")
    return Batch(images, target, label, indices)


def check_range(images: Tensor, *, denormalised: bool) -> None:
    """Check that images of any shape are about in [0, 1] (this waits for the device).

    denormalised: whether `mean` and `std` of the user's transforms were applied to get there.

    Raises:
        UhkdError: with the range found and the likely cause.
    """
    low, high = (x.item() for x in images.detach().float().aminmax())
    if not (low >= -_MARGIN and high <= 1 + _MARGIN):
        hint = "; give mean and std where your transforms normalise (or divide bytes by 255)"
        if denormalised:
            hint = " after mean and std were undone; are these those of your transforms?"
        raise UhkdError(f"images must be in [0, 1], found {low:.3g} to {high:.3g}{hint}")


def _check_below(values: Tensor, count: int, what: str, option: str) -> None:
    if values.device.type == "cpu" and len(values) and not (values.min() >= 0 and values.max() < count):
        raise UhkdError(
            f"{what} must be 0 to {count - 1} ({option} is {count}), found {values.min()} to {values.max()}"
        )
