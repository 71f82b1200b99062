"""`uhkd recipes`: which recipes come along, what one says, and in which keys two of them differ."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from uhkd.console import escape, print_result, print_table
from uhkd.errors import UhkdError
from uhkd.recipe import DistillRecipe, RecipeError, TrainRecipe, build, find_recipe, load_yaml, recipe_names
from uhkd.recipe.arguments import RecipesArguments
from uhkd.recipe.json_schema import RECIPES, editor_schema

_ABSENT = "-"
_WIDE = 1000  # columns of a value in a table

Differences = dict[str, tuple[Any, Any]]


def recipes(
    arguments: RecipesArguments | None = None, *, names: Sequence[str | Path] = ()
) -> list[str] | str | Differences | dict[str, Any]:
    """Print all packaged recipes, one as it stands, or the keys in which two differ, and return what was printed.

    Without a name: the list of names. With one: the file's text. With two: key -> (value of the first, value of the
    second), defaults filled in; "-" where a recipe has no such key or leaves it to the user. Names may also be files and
    run folders. Asked for a verb's schema: that JSON Schema.

    Raises:
        UhkdError: an unknown name (with near ones), more than two names, or a file that is no recipe.
    """
    names = [str(name) for name in (arguments.names if arguments is not None else names)]
    if arguments is not None and arguments.schema_ is not None:
        made = editor_schema(arguments.schema_)
        print_result(json.dumps(made, indent=2))
        return made
    if not names:
        return _list()
    if len(names) == 1:
        text = find_recipe(names[0]).read_text(encoding="utf-8")
        print_result(text.removesuffix("\n"))
        return text
    if len(names) == 2:
        return _compare(*names)
    raise UhkdError(f"recipes: expected no name (list), one (show) or two (compare), found {len(names)}")


def kind_of(fields: dict[str, Any]) -> str:
    """The verb that a recipe's keys are for: compare, distill or finetune."""
    return "compare" if "pairs" in fields else "distill" if "student" in fields else "finetune"


def header(path: Path) -> list[str]:
    """The comment lines at the head of a recipe file, without their #."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines


def _list() -> list[str]:
    names = recipe_names()
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "verb", "student or model", "teacher", "what it is"):
        table.add_column(column, no_wrap=True)  # one line a recipe, cut with an ellipsis on a narrow terminal
    folder = None
    for here, _, short in sorted(name.rpartition("/") for name in names):
        if here != folder:
            table.add_row(f"{here}/")
            folder = here
        path = find_recipe(f"{here}/{short}")
        fields = load_yaml(path)
        network = fields.get("student") or fields.get("model") or f"{len(fields.get('pairs', ()))} pairs"
        cells = (f"  {short}", kind_of(fields), network, fields.get("teacher") or "", next(iter(header(path)), ""))
        table.add_row(*map(escape, cells))
    print_table(table)
    return names


def _compare(first: str, second: str) -> Differences:
    a, b = _resolved(first), _resolved(second)
    keys = [*a, *(key for key in b if key not in a)]
    pairs = {key: (a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in keys}
    differing = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    table = Table("key", escape(first), escape(second), box=None, pad_edge=False)
    for key, values in differing.items():
        table.add_row(escape(key), *(escape(_text(value)) for value in values))
    if differing:
        print_table(table)
    else:
        print_result(escape(f"{first} and {second} say the same"))
    return differing


def _resolved(name: str) -> dict[str, Any]:
    """All keys and values of a recipe, defaults filled in; what the user has to add is left out."""
    path = find_recipe(name)
    fields = load_yaml(path)
    schema = RECIPES[kind_of(fields)]
    open_keys = {key: "?" for key, info in schema.model_fields.items() if info.is_required()}
    if schema is DistillRecipe:
        open_keys["teacher"] = "?"
    open_keys = {key: value for key, value in open_keys.items() if key not in fields}
    try:
        recipe = build(schema, open_keys | fields)
    except RecipeError as error:
        raise RecipeError([f"{path}: {problem}" for problem in error.problems]) from None
    if isinstance(recipe, TrainRecipe):
        recipe = recipe.resolved()
    return {key: value for key, value in recipe.model_dump(mode="json").items() if key not in open_keys}


def _text(value: Any) -> str:
    """A value as YAML would have it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDE, sort_keys=False).removesuffix("...\n").strip()
