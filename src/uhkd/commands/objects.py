"""Objects of the user's own in place of names: networks and data sets among the keyword arguments of a command."""

import os
from collections.abc import Iterable
from typing import Any

from uhkd.recipe import StrictModel


def merged(recipe: StrictModel | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the words of a recipe and, over them, those given beside it."""
    return options if recipe is None else recipe.model_dump(exclude_unset=True) | options


def take_objects(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Take objects out of the words and leave a description, so that the recipe stays plain data."""
    found = {k: options[k] for k in names if k in options and not isinstance(options[k], str | os.PathLike | None)}
    if "teacher" in names and (several := _several(options)):
        found["teacher"] = [None if _is_name(one) else one for one in several]
        described = [one if _is_name(one) else f"module/{type(one).__name__}" for one in several]
        if options.get("teachers"):
            pairs = zip(options["teachers"], described, strict=True)
            options["teachers"] = [{**one, "teacher": name} for one, name in pairs]
        else:
            options["teacher"] = described
        return found | _described({k: v for k, v in found.items() if k != "teacher"}, options)
    return _described(found, options)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _several(options: dict[str, Any]) -> list[Any]:
    """The teachers of a list of them, or of mappings that name them."""
    listed = options.get("teachers") or ()
    if (
        isinstance(listed, list | tuple)
        and listed
        and all(isinstance(one, dict) and "teacher" in one for one in listed)
    ):
        return [one["teacher"] for one in listed]
    return list(options["teacher"]) if isinstance(options.get("teacher"), list | tuple) else []


def _described(found: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The objects; the words hold what they are called instead."""
    options |= {
        k: f"module/{type(v).__name__}" if k != "data" else f"object/{type(v).__name__}" for k, v in found.items()
    }
    return found
