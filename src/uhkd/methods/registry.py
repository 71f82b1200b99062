"""The class of each method name; `uhkd.recipe.method_table` lists the names."""

import inspect
from functools import cache
from typing import Any

from uhkd.errors import UhkdError
from uhkd.methods.base import DistillationLoss
from uhkd.recipe.method_table import entry_of


@cache
def method_class(name: str) -> type[DistillationLoss]:
    """Return the class of a method.

    Raises:
        UhkdError: for an unknown name, or a plug-in that cannot be imported or is no `DistillationLoss`.
    """
    entry = entry_of(name)
    try:
        cls = entry.load()
    except Exception as error:  # the import of another package can fail in any way
        raise UhkdError(
            f"method {name!r} of another package ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, DistillationLoss)):
        raise UhkdError(f"method {name!r} ({entry.value}) is not a subclass of uhkd.methods.DistillationLoss")
    return cls


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a method's constructor, by name."""
    cls: Any = method_class(name)
    parameters = inspect.signature(cls).parameters
    return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
