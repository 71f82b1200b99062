"""Method names -> classes; the names are in `uhkd.recipe.method_table`."""

import inspect
from functools import cache
from typing import Any

from uhkd.errors import UhkdError
from uhkd.methods.base import DistillationLoss
from uhkd.recipe.method_table import entry_of


@cache
def method_class(name: str) -> type[DistillationLoss]:
    """The class of a method.

    Raises:
        UhkdError: for an unknown name, or a plug-in that cannot be imported or is no `DistillationLoss`.
    """
    entry = entry_of(name)
    try:
        found = entry.load()
    except Exception as error:  # a foreign package may fail in any way
        raise UhkdError(
            f"method {name!r} of another package ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, DistillationLoss)):
        raise UhkdError(f"method {name!r} ({entry.value}) is not a subclass of uhkd.methods.DistillationLoss")
    return found


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """The keyword settings of a method, by name."""
    make: Any = method_class(name)
    parameters = inspect.signature(make).parameters
    return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
