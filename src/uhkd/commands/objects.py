"""Objects of the user's own in place of names: networks and data sets among the keyword arguments of a command."""

import os
from collections.abc import Iterable
from typing import Any

from uhkd.recipe import StrictModel


def merged(recipe: StrictModel | None, words: dict[str, Any]) -> dict[str, Any]:
    """Return the words of a recipe and, over them, those given beside it."""
    return words if recipe is None else recipe.model_dump(exclude_unset=True) | words


def take_objects(words: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Take objects out of the words and leave a description, so that the recipe stays plain data."""
    found = {k: words[k] for k in names if k in words and not isinstance(words[k], str | os.PathLike | None)}
    if "teacher" in names and (several := _several(words)):
        found["teacher"] = [None if _is_word(one) else one for one in several]
        described = [one if _is_word(one) else f"module/{type(one).__name__}" for one in several]
        if words.get("teachers"):
            pairs = zip(words["teachers"], described, strict=True)
            words["teachers"] = [{**one, "teacher": name} for one, name in pairs]
        else:
            words["teacher"] = described
        return found | _described({k: v for k, v in found.items() if k != "teacher"}, words)
    return _described(found, words)


def _is_word(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _several(words: dict[str, Any]) -> list[Any]:
    """The teachers of a list of them, or of mappings that name them."""
    listed = words.get("teachers") or ()
    if (
        isinstance(listed, list | tuple)
        and listed
        and all(isinstance(one, dict) and "teacher" in one for one in listed)
    ):
        return [one["teacher"] for one in listed]
    return list(words["teacher"]) if isinstance(words.get("teacher"), list | tuple) else []


def _described(found: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    """The objects; the words hold what they are called instead."""
    words |= {
        k: f"module/{type(v).__name__}" if k != "data" else f"object/{type(v).__name__}" for k, v in found.items()
    }
    return found
