"""The error of a user's mistake, and the check of a choice."""

from typing import Any, get_args


class UhkdError(ValueError):
    """Invalid input: an option, a file, a network or a run folder. The message contains what to change.

    The command line prints the message without a traceback and exits with code 2. Any other ValueError is a bug.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, NumPy or torch means that the memory of the host or of a GPU is used up."""
    # the allocator for CPU tensors raises a plain RuntimeError; by name, because this module does not import torch
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or (type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "out of memory" in text)
        or (
            isinstance(error, RuntimeError)
            and any(
                phrase in text for phrase in ("DefaultCPUAllocator", "bad_alloc", "Storage size calculation overflowed")
            )
        )
    )


def check_choice(what: str, value: object, choices: Any) -> None:
    """Check that a value is one of a Literal type; `what` names it in the message.

    Raises:
        UhkdError: it is not.
    """
    if value not in get_args(choices):
        raise UhkdError(f"unknown {what} {value!r}; expected one of {', '.join(get_args(choices))}")
