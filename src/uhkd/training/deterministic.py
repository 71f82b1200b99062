"""Trainings that repeat to the bit on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uhkd.errors import UhkdError

_REFUSED = " does not have a deterministic implementation"  # torch's words; before them stands the operation


def make_deterministic() -> None:
    """Let torch choose operations that repeat to the bit, and refuse those that cannot, for the rest of this process."""
    # read when cuBLAS is first used: without a workspace of fixed size its products depend on what runs beside them
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def deterministic_advice() -> Iterator[None]:
    """An operation that torch refused because it cannot repeat to the bit becomes a ValueError that says what to do.

    Raises:
        UhkdError: naming the operation. Other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(_REFUSED)
        if not refused:
            raise
        raise UhkdError(
            f"deterministic: {operation.split()[-1]} cannot repeat to the bit on this device; leave out --deterministic, or "
            "choose another network or method"
        ) from error
