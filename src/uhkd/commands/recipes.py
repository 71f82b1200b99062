"""`recipes`: list the packaged recipes, print one, or compare two."""

import json
from collections.abc import Sequence
from itertools import takewhile
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
_WIDE = 1000  # characters of a value on one line

Differences = dict[str, tuple[Any, Any]]


def recipes(
    arguments: RecipesArguments | None = None, *, names: Sequence[str | Path] = ()
) -> list[str] | str | Differences | dict[str, Any]:
    """Print and return the packaged recipes, the text of one, or the keys in which two differ.

    Without a name: the list of names. With one: the text of the file. With two: key -> (value of the first, value of the
    second) including defaults; "-" where a recipe does not have a key or requires it from the user. Names may also be files or
    run folders. With the option `schema`: the JSON Schema of a command's recipe.

    Raises:
        UhkdError: for an unknown name (with similar ones), more than two names, or a file that is no recipe.
    """
    names = [str(name) for name in (arguments.names if arguments is not None else names)]
    if arguments is not None and arguments.schema_ is not None:
        schema = editor_schema(arguments.schema_)
        print_result(json.dumps(schema, indent=2))
        return schema
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
    """Return the command of a recipe: compare, distill or finetune."""
    return "compare" if "pairs" in fields else "distill" if "student" in fields else "finetune"


def header(path: Path) -> list[str]:
    """Return the comment lines at the top of a recipe file, without their #."""
    comments = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return [line[1:].removeprefix(" ") for line in comments]


def _list() -> list[str]:
    names = recipe_names()
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "command", "student or model", "teacher", "description"):
        table.add_column(column, no_wrap=True)  # one line per recipe, cut with an ellipsis on a narrow terminal
    last_folder = None
    for folder, _, name in sorted(name.rpartition("/") for name in names):
        if folder != last_folder:
            table.add_row(f"{folder}/")
            last_folder = folder
        path = find_recipe(f"{folder}/{name}")
        fields = load_yaml(path)
        network = fields.get("student") or fields.get("model") or f"{len(fields.get('pairs', ()))} pairs"
        cells = (f"  {name}", kind_of(fields), network, fields.get("teacher") or "", next(iter(header(path)), ""))
        table.add_row(*map(escape, cells))
    print_table(table)
    return names


def _compare(first: str, second: str) -> Differences:
    a, b = _resolved(first), _resolved(second)
    pairs = {key: (a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in a | b}
    differing = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    table = Table("key", escape(first), escape(second), box=None, pad_edge=False)
    for key, values in differing.items():
        table.add_row(escape(key), *(escape(_text(value)) for value in values))
    if differing:
        print_table(table)
    else:
        print_result(escape(f"{first} and {second} are the same"))
    return differing


def _resolved(name: str) -> dict[str, Any]:
    """Return all keys and values of a recipe including defaults, without the keys that the user has to add."""
    path = find_recipe(name)
    fields = load_yaml(path)
    schema = RECIPES[kind_of(fields)]
    required = [key for key, info in schema.model_fields.items() if info.is_required()]
    required += ["teacher"] if schema is DistillRecipe else []
    open_keys = {key: "?" for key in required if key not in fields}
    try:
        recipe = build(schema, open_keys | fields)
    except RecipeError as error:
        raise RecipeError([f"{path}: {problem}" for problem in error.problems]) from None
    if isinstance(recipe, TrainRecipe):
        recipe = recipe.resolved()
    return {key: value for key, value in recipe.model_dump(mode="json").items() if key not in open_keys}


def _text(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDE, sort_keys=False).removesuffix("...\n").strip()
