"""Networks and data sets passed as objects among the keyword arguments of a command."""

import os
from collections.abc import Iterable
from typing import Any

from uhkd.models.module_checks import check_module
from uhkd.recipe import StrictModel


def merged(recipe: StrictModel | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields set in a recipe, updated by `options`."""
    return options if recipe is None else recipe.model_dump(exclude_unset=True) | options


def take_objects(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the objects among `options`, and replace each by a description, so that the recipe stays plain data."""
    objects = {k: options[k] for k in names if k in options and not isinstance(options[k], str | os.PathLike | None)}
    if "teacher" in names and (teachers := _teacher_list(options)):
        objects["teacher"] = [None if _is_name(teacher) else teacher for teacher in teachers]
        described = [teacher if _is_name(teacher) else _describe("module", teacher) for teacher in teachers]
        if options.get("teachers"):
            pairs = zip(options["teachers"], described, strict=True)
            options["teachers"] = [{**fields, "teacher": name} for fields, name in pairs]
        else:
            options["teacher"] = described
    elif "teacher" in objects:
        options["teacher"] = _describe("module", objects["teacher"])
    for value in (objects[name] for name in objects.keys() - {"data"}):
        for module in value if isinstance(value, list) else [value]:
            if module is not None:
                check_module(module)
    for name in objects.keys() - {"teacher"}:
        options[name] = _describe("object" if name == "data" else "module", objects[name])
    return objects


def _is_name(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _describe(kind: str, value: Any) -> str:
    return f"{kind}/{type(value).__name__}"


def _teacher_list(options: dict[str, Any]) -> list[Any]:
    """Return the teachers in `teachers`, a list of mappings, or in `teacher`, a list; else an empty list."""
    teachers = options.get("teachers")
    named = isinstance(teachers, list | tuple) and all(isinstance(x, dict) and "teacher" in x for x in teachers)
    if named and teachers:
        return [fields["teacher"] for fields in teachers]
    return list(options["teacher"]) if isinstance(options.get("teacher"), list | tuple) else []
