"""A mapping of words into a recipe, with every mistake in it told at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from uhkd.errors import UhkdError

Model = TypeVar("Model", bound=BaseModel)

# pydantic's error type (without _type, _parsing, _from_float) -> what was expected
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "key: value pairs",
    "model": "key: value pairs",
    "finite_number": "a finite number",
}
_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


class RecipeError(UhkdError):
    """All that is wrong with one recipe: `problems`, one line each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        assert self.problems, "an error without a problem"
        super().__init__(
            self.problems[0]
            if len(self.problems) == 1
            else f"{len(self.problems)} problems:" + "".join(f"\n  - {problem}" for problem in self.problems)
        )

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[list[str]]]:
        """Pickled by its problems, so that it comes whole out of a worker process."""
        return RecipeError, (self.problems,)


def did_you_mean(option: str, names: Iterable[str]) -> str:
    """'; did you mean ...?' with up to three of `names` that look like `option`, or nothing."""
    near = get_close_matches(option.lower(), list(names), n=3, cutoff=0.6)
    return f"; did you mean {_either([repr(name) for name in near])}?" if near else ""


def _either(choices: Sequence[str]) -> str:
    """'a, b or c'."""
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)


def build(schema: type[Model], mapping: Mapping[str, Any]) -> Model:
    """The validated `schema` object of `mapping`.

    Raises `RecipeError` that lists every unknown key, missing key and unfit value in one go.
    """
    try:
        return schema.model_validate(dict(mapping))
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [line for detail in details for line in _lines(detail, schema)]
    raise RecipeError(dict.fromkeys([*problems, *_disagreements(schema, mapping, details)]))


def _disagreements(schema: type[BaseModel], mapping: Mapping[str, Any], details: Sequence[ErrorDetails]) -> list[str]:
    """What the checks between fields say once the fields that are wrong by themselves are left out.

    pydantic runs those checks only when every field is fit, which would tell the mistakes in two rounds.
    """
    wrong = {str(detail["loc"][0]) for detail in details if detail["loc"]}
    missing = {str(detail["loc"][0]): "?" for detail in details if detail["type"] == "missing"}
    try:
        schema.model_validate({key: value for key, value in mapping.items() if key not in wrong} | missing)
    except ValidationError as error:
        between = [detail for detail in error.errors(include_url=False) if not detail["loc"]]
        lines = [line for detail in between for line in _lines(detail, schema)]
        return [line for line in lines if not any(re.search(rf"\b{re.escape(name)}\b", line) for name in wrong)]
    return []


def _lines(details: ErrorDetails, schema: type[BaseModel]) -> list[str]:
    """One problem of pydantic's in our words: name, what was expected, what was found."""
    name = ".".join(str(part) for part in details["loc"])
    within, option = _innermost(schema, details["loc"])
    kind, found = details["type"], details["input"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        hint = did_you_mean(option, within.model_fields)
        return [f"{name}: unknown key{hint or '; `uhkd VERB --help` lists the known ones'}"]
    if kind == "missing":
        return [f"{name}: required but not given ({within.model_fields[option].description})"]
    if kind == "value_error":
        lines = str(context["error"]).split("\n")
        return [f"{name}: {line}" for line in lines] if name else lines
    if kind == "literal_error":
        if within is schema:
            name = option = str(details["loc"][0])  # of an item in a list: the list's
        kinds = within.model_fields[option].annotation
        kinds = next((kind for kind in get_args(kinds) if get_origin(kind) is Literal), kinds)
        choices = [str(c) for c in get_args(get_args(kinds)[0] if get_origin(kinds) is tuple else kinds)]
        hint = did_you_mean(str(found), choices)
        return [f"{name.rstrip('_')}: expected {_either(choices)}, found {shown(found)}{hint}"]
    return [f"{name}: expected {_expected(kind, context, details['msg'])}, found {shown(found)}"]


def _innermost(schema: type[BaseModel], loc: Sequence[str | int]) -> tuple[type[BaseModel], str]:
    """The schema that a problem lies in, of those within a list in `schema`, and the field's name there."""
    field = schema.model_fields.get(str(loc[0])) if len(loc) > 2 and isinstance(loc[1], int) else None
    inner = get_args(field.annotation)[:1] if field is not None else ()
    if inner and isinstance(inner[0], type) and issubclass(inner[0], BaseModel):
        return inner[0], str(loc[2])
    return schema, str(loc[0]) if loc else ""


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(found: Any) -> str:
    """A value as a recipe would have it; of long ones the beginning, as YAML's aliases make endless ones of a few bytes."""
    return "nothing" if found is None else str(found).lower() if isinstance(found, bool) else _SHORT.repr(found)


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _BOUNDS:
        bound = next(iter(context.values()))
        return f"a value {_BOUNDS[kind]} {bound:g}"
    if kind == "string_too_short":
        return "some text"
    stem = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    return _KINDS.get(stem, message)
