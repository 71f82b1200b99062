"""Checks of a network's outputs on two images: they are finite, and class scores rather than probabilities."""

import torch
from torch import Tensor, nn

from uhkd.errors import UhkdError


def check_finite_output(output: Tensor | None, owner: str) -> None:
    """Check that an output of any shape is finite.

    Raises:
        UhkdError: for NaN or infinite values.
    """
    if output is not None and not bool(output.isfinite().all()):
        share = 1 - float(output.isfinite().float().mean())
        raise UhkdError(
            f"{owner} gives NaN or infinite values ({share:.0%} of its output) for images in [0,1]: check its forward pass, its "
            "number format and its weights"
        )


def probabilities_note(scores: Tensor, module: nn.Module) -> str | None:
    """Return a note if the class scores (B,K) are log-probabilities, which train as logits do.

    Raises:
        UhkdError: they are probabilities: losses would apply softmax twice.
    """
    owner, rows = type(module).__name__, scores.float()
    if rows.shape[1] < 2:
        return None
    tolerance = max(1e-3, 3 * torch.finfo(scores.dtype).eps)
    if bool((rows <= tolerance).all()) and bool((rows.logsumexp(1).abs() < tolerance).all()):
        return (
            f"the outputs of {owner} are log-probabilities; they are used as logits, which gives the same probabilities"
        )
    name, last = list(module.named_modules())[-1]
    sigmoid = isinstance(last, nn.Sigmoid) and bool(((rows > 0) & (rows <= 1)).all())
    if bool((rows < 0).any()) or (not sigmoid and bool(((rows.sum(1) - 1).abs() > tolerance).any())):
        return None
    how = (
        f"module.set_submodule('{name}', torch.nn.Identity())"
        if isinstance(last, nn.Softmax | nn.Sigmoid) and name
        else "in forward"
    )
    if sigmoid:
        raise UhkdError(f"{owner} ends with a sigmoid, expected class scores before it: remove it ({how})")
    raise UhkdError(
        f"{owner} gives probabilities (each row is >= 0 with sum 1), expected class scores before softmax: the losses apply "
        f"softmax themselves; remove it ({how}), or return the logarithm of the probabilities"
    )
