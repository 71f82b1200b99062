"""What `Distillation` makes of the arguments of a user's training loop: batches and the balance, with checks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.training.balance import Balance, make_balance

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


def user_balance(
    name: str,
    settings: Mapping[str, Any] | None,
    losses: nn.ModuleDict,
    has_accuracy: bool,
    teacher_accuracy: float | None,
    total_steps: int | None,
) -> Balance | None:
    """Return the balance for a training loop of a user; None for constant weights.

    has_accuracy: whether the teacher's accuracy can be computed from its logits. teacher_accuracy: on held-out images, 0..1, or
    None. total_steps: of the whole training, or None.

    Raises:
        UhkdError: as `make_balance`; for a balance that such a loop cannot provide for.
    """
    if name == "cap":
        raise UhkdError(
            "balance cap measures gradients before a step, which only uhkd.distill does; use another balance, such as lead"
        )
    if teacher_accuracy is not None:
        check_accuracy("teacher_accuracy", teacher_accuracy)
    bounds = [] if teacher_accuracy is None else [teacher_accuracy]
    balance = make_balance(name, settings or {}, losses, has_accuracy=[has_accuracy], bounds=bounds)
    if total_steps is None and balance is not None and set(balance.falls) != {"constant"}:
        raise UhkdError(f"balance {name} falls over the training: give total_steps, the number of all its steps")
    return balance


def check_accuracy(name: str, accuracy: float, images: int | None = None) -> None:
    """Raise a UhkdError for an accuracy that is not 0..1, or that is measured on no image."""
    if not 0 <= accuracy <= 1:
        raise UhkdError(f"{name} must be 0 to 1, found {accuracy}")
    if images is not None and images < 1:
        raise UhkdError(f"images must be 1 or more, found {images}")


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
