"""Several processes of one training: how many there are, the whole batch, and what torchrun started."""

import os
import signal
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line asks for its launcher before it imports torch
    from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather_batch(x: "Tensor") -> "Tensor":
    """(b, ...) of this process -> (b * processes, ...) of all, in the order that one process would have them; alone, x itself.

    For losses that relate the images of a batch. Every process then computes the loss of the whole batch, and its gradient goes
    to its own part alone, times the number of processes: DDP, which averages over them, is left with the gradient that one
    process with the whole batch would have. Nothing is sent in the backward pass.
    """
    return _gather_function().apply(x) if world_size() > 1 else x


@cache
def _gather_function() -> Any:
    import torch
    import torch.distributed as dist

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: "Tensor") -> "Tensor":
            parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
            dist.all_gather(parts, x.contiguous())
            # the loader deals images out in turn
            return torch.stack(parts, 1).flatten(0, 1)

        @staticmethod
        def backward(ctx: Any, *grads: "Tensor") -> "Tensor":
            (grad,), count = grads, world_size()
            return grad[dist.get_rank() :: count] * count

    return Gather


@cache
def exit_with_parent() -> None:
    """Ask this process to end, as a scheduler would, when torchrun, which started it, is gone; others are left alone.

    Killed, torchrun leaves its processes behind: they would train on unseen, or wait for half an hour for each other to begin.
    To be called before anything slow: what has lost its parent already cannot tell.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.name != "posix":
        return
    launcher = os.getppid()

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def first_to_report(line: str) -> bool:
    """Whether no other process of this torchrun has said the same: a mistake that all of them meet is told once.

    The launcher's own store decides, so that a fault of one process alone is told by that one. Without it every process speaks.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment.get("WORLD_SIZE", "1") == "1":
        return True
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore

        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"uhkd/said/{line}", 1) == 1
    except Exception:  # a line too many is better than none
        return True
