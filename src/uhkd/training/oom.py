"""Advice when memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from uhkd.errors import UhkdError, is_out_of_memory

_MACHINE = "or a machine with more memory"
LARGE_IMAGES = f"not enough memory for images of this size: use a smaller --image-size, a smaller network {_MACHINE}"
SETUP = f"{LARGE_IMAGES} (the teacher and the validation run on batches of their own, whatever the batch size)"
LARGE_BATCH = f"not enough memory: use a smaller --batch-size, {_MACHINE}"
MANY_IMAGES = f"not enough memory: use fewer --images, {_MACHINE}"
LARGE_NETWORK = f"not enough memory for one image: use a smaller network, {_MACHINE}"


def step_advice(step: int, total: int, last_checkpoint: str) -> str:
    """Return the advice for memory that runs out in the step after `step` of `total`."""
    return (
        f"not enough memory for step {step + 1} of {total}; {last_checkpoint}. Use a smaller batch (--batch-size), or "
        "--grad-accum-steps N to compute it in N parts"
    )


@contextmanager
def memory_advice(advice: str | Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU or of the host into advice; other errors pass.

    Raises:
        UhkdError: if memory runs out, with `advice`, or what it returns, as its message.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UhkdError(advice if isinstance(advice, str) else advice()) from error
