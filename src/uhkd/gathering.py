"""The whole batch, where each process of a training has a part of it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    """(b, ...) of this process -> (b * processes, ...) of all, in the order that one process would have them; alone, x itself.

    For losses that relate the images of a batch. Every process then computes the loss of the whole batch, and its gradient goes
    to its own part alone, times the number of processes: DDP, which averages over them, is left with the gradient that one
    process with the whole batch would have. Nothing is sent in the backward pass.
    """
    return _Gathered.apply(x) if processes() > 1 else x  # pyright: ignore[reportReturnType] (apply is untyped)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        # the loader deals images out in turn
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,), count = grads, processes()
        return grad[dist.get_rank() :: count] * count
