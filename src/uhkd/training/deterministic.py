"""Bit-exact repetition of a training on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uhkd.errors import UhkdError

_NOT_IMPLEMENTED = " does not have a deterministic implementation"  # torch's error message, after the operation's name


def make_deterministic() -> None:
    """Let torch use deterministic operations only, and raise errors for others, until this process ends."""
    # cuBLAS reads it at its first use: without a workspace of fixed size, products depend on what runs concurrently
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def deterministic_advice() -> Iterator[None]:
    """Turn torch's error about an operation that is not deterministic into advice; other errors pass.

    Raises:
        UhkdError: if there is such an operation, with its name.
    """
    try:
        yield
    except RuntimeError as error:
        operation, not_implemented, _ = str(error).partition(_NOT_IMPLEMENTED)
        if not not_implemented:
            raise
        raise UhkdError(
            f"deterministic: {operation.split()[-1]} is not deterministic on this device; leave out --deterministic, or "
            "choose another network or method"
        ) from error
