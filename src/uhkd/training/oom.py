"""Advice when memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from uhkd.errors import UhkdError, is_out_of_memory


def setup_advice() -> str:
    """Return the advice for memory that runs out outside of a training step."""
    return (
        "not enough memory for images of this size: use a smaller --image-size, a smaller network or a machine with more memory "
        "(the teacher and the validation run on batches of their own, whatever the batch size)"
    )


def step_advice(step: int, total: int, last_checkpoint: str) -> str:
    """Return the advice for memory that runs out in the step after `step` of `total`."""
    return (
        f"not enough memory for step {step + 1} of {total}; {last_checkpoint}. Use a smaller batch (--batch-size), or "
        "--grad-accum-steps N to compute it in N parts"
    )


@contextmanager
def memory_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU or of the host into advice; other errors pass.

    Raises:
        UhkdError: if memory runs out, with `advice()` as its message.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UhkdError(advice()) from error
