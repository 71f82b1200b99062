"""Validation of a recipe that reports all mistakes together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from uhkd.errors import UhkdError
from uhkd.recipe.other_tools import other_name, other_value

Model = TypeVar("Model", bound=BaseModel)

# pydantic's error type, or its first part (int_parsing, int_from_float) -> expected value
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string_too_short": "some text",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "key: value pairs",
    "model": "key: value pairs",
    "finite": "a finite number",
}
UNKNOWN_HINT = "; `uhkd COMMAND --help` lists the known ones"
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class RecipeError(UhkdError):
    """All mistakes in one recipe: `problems`, one line each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        assert self.problems, "an error without a problem"
        super().__init__(
            self.problems[0]
            if len(self.problems) == 1
            else f"{len(self.problems)} problems:" + "".join(f"\n  - {problem}" for problem in self.problems)
        )

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[list[str]]]:
        """Return the arguments to rebuild it from, so that worker processes can raise it."""
        return RecipeError, (self.problems,)


def did_you_mean(name: str, names: Iterable[str], limit: int = 3) -> str:
    """Return '; did you mean ...?' with up to `limit` of `names` similar to `name`, or an empty string."""
    similar = [repr(near) for near in get_close_matches(name.lower(), list(names), n=limit)]
    if not similar:
        return ""
    *others, last = similar
    return f"; did you mean {', '.join(others)}{' or ' * bool(others)}{last}?"


def build(schema: type[Model], mapping: Mapping[str, Any]) -> Model:
    """Return `mapping` as a validated `schema` object.

    Raises:
        RecipeError: with every unknown key, missing key and invalid value.
    """
    try:
        return schema.model_validate(dict(mapping))
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [line for detail in details for line in _lines(detail, schema)]
    raise RecipeError(dict.fromkeys([*problems, *_conflicts(schema, mapping, details)]))


def _conflicts(schema: type[BaseModel], mapping: Mapping[str, Any], details: Sequence[ErrorDetails]) -> list[str]:
    """Validate again without the invalid fields and return the problems between the other fields.

    pydantic checks between fields only if each field is valid, so these problems would be reported one round later.
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
    """Return the lines for one of pydantic's errors: option, expected value, found value."""
    loc, kind, value, context = details["loc"], details["type"], details["input"], details.get("ctx", {})
    name = ".".join(map(str, loc))
    if kind == "value_error":
        lines = str(context["error"]).split("\n")
        return [f"{name}: {line}" for line in lines] if name else lines
    if kind in ("extra_forbidden", "missing"):
        model, option = _innermost(schema, loc)
        if kind == "missing":
            return [f"{name}: required but not given ({model.model_fields[option].description})"]
        hint = other_name(option, model.model_fields) or did_you_mean(option, model.model_fields) or UNKNOWN_HINT
        return [f"{name}: unknown key{hint}"]
    hint = ""
    if kind == "literal_error":
        name = re.sub(r"(_|\.\d+)$", "", name)  # schema_; of an item in a list, the list
        expected = context["expected"].replace("'", "")
        hint = other_value(name, value) or did_you_mean(str(value), re.split(", | or ", expected))
    elif bounds := [f"a value {_BOUNDS[key]} {bound:g}" for key, bound in context.items() if key in _BOUNDS]:
        expected = bounds[0]
    else:
        expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.split("_")[0], details["msg"])
    return [f"{name}: expected {expected}, found {format_value(value)}{hint}"]


def _innermost(schema: type[BaseModel], loc: Sequence[str | int]) -> tuple[type[BaseModel], str]:
    """Return the model that contains an error, which may be an item of a list in `schema`, and the option's name in it."""
    if len(loc) > 2 and isinstance(loc[1], int):
        return get_args(schema.model_fields[str(loc[0])].annotation)[0], str(loc[2])
    return schema, str(loc[0])


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def format_value(value: Any) -> str:
    """Return a value in YAML's terms, shortened: a few bytes of YAML aliases can represent an endless value."""
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else _SHORT.repr(value)
