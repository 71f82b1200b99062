"""Too little memory, said in words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from uhkd.errors import UhkdError


@contextmanager
def memory_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Running out of memory inside, of a GPU or of the machine, becomes a ValueError that says what to do.

    Raises:
        UhkdError: with the advice. Other errors pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # a CPU's allocator raises a plain RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UhkdError(advice()) from error
