"""Method names -> classes: ours, and those that other packages bring by the entry-point group "uhkd.methods"."""

import difflib
import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from uhkd.methods.base import Distiller
from uhkd.recipe.method_table import METHODS

GROUP = "uhkd.methods"


@cache
def _known() -> dict[str, EntryPoint]:
    ours = {name: EntryPoint(name, f"uhkd.methods.{where}", GROUP) for name, where in METHODS.items()}
    # a plug-in cannot replace a method of ours: a name in a table must mean one thing
    return {point.name: point for point in entry_points(group=GROUP)} | ours


def method_names() -> list[str]:
    """All known methods: ours in the order of the tables, then those of plug-ins."""
    return [*METHODS, *sorted(set(_known()) - set(METHODS))]


@cache
def method_class(name: str) -> type[Distiller]:
    """The class of a method.

    Raises:
        ValueError: for an unknown name, or a plug-in that cannot be imported or is no `Distiller`.
    """
    known = _known()
    if name not in known:
        near = suggest(name, method_names())
        raise ValueError(f"unknown method {name!r}{near} (known: {', '.join(method_names())})")
    try:
        found = known[name].load()
    except Exception as error:  # a foreign package may fail in any way
        raise ValueError(
            f"method {name!r} of another package ({known[name].value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Distiller)):
        raise ValueError(f"method {name!r} ({known[name].value}) is not a subclass of uhkd.methods.Distiller")
    return found


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """The keyword settings of a method, by name."""
    make: Any = method_class(name)
    parameters = inspect.signature(make).parameters
    return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def suggest(word: str, known: list[str]) -> str:
    """'; did you mean ...?' with the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
