"""Distributed training: world size, all-gather of a batch, buffers that DDP sends, processes started by torchrun."""

import os
import signal
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line calls exit_with_parent before it imports torch
    from torch import Tensor
    from torch.nn import Module


def world_size() -> int:
    """Return the number of processes that train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather_batch(x: "Tensor") -> "Tensor":
    """Gather (b, ...) of each process into (b * processes, ...), in the order of a single process; one process returns x.

    For losses between the images of a batch. Every process computes the loss of the whole batch; the gradient goes only to its
    own part, times the number of processes. DDP averages over processes, so the result is the gradient of a single process with
    the whole batch. The backward pass needs no communication.
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
            # the loader distributes images to processes in turn
            return torch.stack(parts, 1).flatten(0, 1)

        @staticmethod
        def backward(ctx: Any, *grads: "Tensor") -> "Tensor":
            (grad,), count = grads, world_size()
            return grad[dist.get_rank() :: count] * count

    return Gather


def broadcast_only(module: "Module", prefix: str) -> None:
    """Let DDP send only the buffers of a module whose names start with `prefix` at each step.

    The others, most of DDP's traffic, are equal in all processes: FAMs see the whole batch, and memory banks store the same rows.
    """
    from torch.nn.parallel import DistributedDataParallel

    others = [name for name, _ in module.named_buffers() if not name.startswith(prefix)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, others)


@cache
def exit_with_parent() -> None:
    """Send SIGTERM to this process when torchrun, which started it, has ended; do nothing without torchrun.

    A killed torchrun leaves its processes running: they would continue to train, or wait half an hour for each other at start.
    Call it before any slow work: a process that has already lost its parent cannot detect it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.name != "posix":
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def first_to_report(line: str) -> bool:
    """Return whether no other process of this torchrun has reported the same line, so that an error of all is printed once.

    Decided by torchrun's store, so that an error of a single process is printed too. Without the store, always True.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"uhkd/reported/{line}", 1) == 1
    except Exception:  # better to print a line twice than never
        return True
