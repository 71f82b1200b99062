"""Advice when memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from uhkd.errors import UhkdError


@contextmanager
def memory_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU or of the host into advice; other errors pass.

    Raises:
        UhkdError: if memory runs out, with `advice()` as its message.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # the allocator for CPU tensors raises a plain RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UhkdError(advice()) from error
