"""Pages of the site made from the schemas: commands, command-line options and recipe options."""

from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from uhkd.__main__ import COMMANDS
from uhkd.cli.parser import SCHEMAS
from uhkd.console import DRY_RUN, OPTIONS, PLANS
from uhkd.recipe import CacheRecipe, CompareRecipe, DistillRecipe, FinetuneRecipe, StrictModel, recipe_names

_HEAD = "<!-- made from the code by website/reference_pages.py -->\n\n"
_RECIPES = (FinetuneRecipe, DistillRecipe, CompareRecipe, CacheRecipe)


def reference(modules: Sequence[str]) -> str:
    """The page that the reference begins with."""
    python = "\n".join(f"- [`{module}`](python/{module}.md)" for module in modules)
    return (
        f"{_HEAD}# Reference\n\nThese pages are generated from the code when the site is built.\n\n"
        "- [Command line](command-line.md): every command and option, with its default.\n"
        "- [Recipe](recipe.md): the same options in a YAML file.\n"
        "- [Glossary](../glossary.md): the terms explained.\n\n"
        f"## Python\n\nStart with `uhkd`. The other modules are its parts and can also be used separately.\n\n{python}\n"
    )


def command_line() -> str:
    """Return the page of all commands with their options, defaults and meanings."""
    listed = "\n".join(f"| [`{command}`](#{command}) | {line} |" for command, line in COMMANDS.items())
    dry = {DRY_RUN: f"resolve and check as much as possible before the work starts; write nothing ({', '.join(PLANS)})"}
    shared = "\n".join(f"| `{option}` | {meaning} |" for option, meaning in (OPTIONS | dry).items())
    parts = [
        f"{_HEAD}# Command line",
        "`uhkd COMMAND --help` prints the same in a terminal. Options may be written `--batch-size 64` or `--batch-size=64`.",
        f"| command | what it does |\n|---|---|\n{listed}",
        "Before or after the command, for every command ([scripting](../scripting.md)):",
        f"| option | meaning |\n|---|---|\n{shared}",
    ]
    for command, schema in SCHEMAS.items():
        positional: tuple[str, ...] = getattr(schema, "positional", ())
        config = " [-c RECIPE]" if issubclass(schema, _RECIPES) else ""
        names = "".join(f" {name.upper()}{'...' if _many(schema.model_fields[name]) else ''}" for name in positional)
        parts += [
            f"## {command} {{#{command.replace(' ', '-')}}}",
            schema.__doc__ or "",
            f"    uhkd {command}{config}{names} [OPTIONS]",
        ]
        if config:
            parts.append(
                "`-c`, `--config`: recipe to start from (YAML file, run folder, packaged name); options override it."
            )
        parts.append(
            _table(
                ("option", "takes", "default", "meaning"),
                [_option(name, schema.model_fields[name], positional) for name in _sorted(schema, positional)],
            )
        )
    return "\n\n".join(parts) + "\n"


def recipe_options() -> str:
    """Return the page of the options of each kind of recipe."""
    packaged = "\n".join(f"- `{name}`" for name in recipe_names())
    parts = [
        f"{_HEAD}# Recipe",
        "A recipe is a YAML file of options. The same options are used on the command line (`batch_size` is `--batch-size`) "
        "and as keyword arguments in Python. An unknown option raises an error that suggests the nearest known option. "
        "A run folder contains its recipe with all defaults: `uhkd distill -c runs/student --out runs/again` "
        "runs the same training again.",
    ]
    for schema in _RECIPES:
        command = next(command for command, of in SCHEMAS.items() if of is schema)
        parts += [
            f"## {command} {{#recipe-{command}}}",
            schema.__doc__ or "",
            _table(
                ("option", "takes", "default", "meaning"),
                [
                    (f"`{n}`", _takes(f), _default(f), _cell(f.description or ""))
                    for n, f in ((name, schema.model_fields[name]) for name in _sorted(schema, ()))
                ],
            ),
        ]
    parts += [
        "## Packaged recipes",
        "`uhkd recipes NAME` prints a recipe. With two names it prints the options that differ.",
        packaged,
    ]
    return "\n\n".join(parts) + "\n"


def _sorted(schema: type[StrictModel], positional: Sequence[str]) -> list[str]:
    """Names in the order of --help: positional, required, the schema's own, those it shares with others."""
    fields, own = schema.model_fields, schema.__annotations__
    rank = {n: 0 if n in positional else 1 if f.is_required() else 2 if n in own else 3 for n, f in fields.items()}
    return sorted(fields, key=rank.__getitem__)


def _option(name: str, field: FieldInfo, positional: Sequence[str]) -> tuple[str, str, str, str]:
    flag = name.upper() if name in positional else "--" + name.replace("_", "-")
    switch = field.annotation in (bool, bool | None)
    shown = f"`{flag}`, `--no-{name.replace('_', '-')}`" if switch else f"`{flag}`"
    return shown, "" if switch else _takes(field), _default(field), _cell(field.description or "")


def _parts(field: FieldInfo) -> list[Any]:
    union = get_origin(field.annotation) not in (None, tuple, dict, list, Literal)
    return [part for part in (get_args(field.annotation) if union else (field.annotation,)) if part is not NoneType]


def _many(field: FieldInfo) -> bool:
    return any((get_origin(part) or part) in (tuple, list) for part in _parts(field))


def _takes(field: FieldInfo) -> str:
    """Return the form of a value as text."""
    (part, *_) = _parts(field)
    if get_origin(part) is Literal:
        return _cell(" or ".join(f"`{choice}`" for choice in get_args(part)))
    if (get_origin(part) or part) is dict:
        return "`KEY=VALUE` ..."
    if (get_origin(part) or part) in (tuple, list):
        inner = (get_args(part) or (str,))[0]
        return (
            " or ".join(f"`{choice}`" for choice in get_args(inner)) + " ..."
            if get_origin(inner) is Literal
            else "several"
        )
    bounds = [
        f"{sign} {value:,}" if isinstance(value, int) else f"{sign} {value:g}"
        for rule in field.metadata
        for sign, value in _bounds(rule)
    ]
    kind = {bool: "true or false", int: "whole number", float: "number"}.get(part, "text")
    return ", ".join([kind, *bounds])


def _bounds(rule: Any) -> Iterable[tuple[str, float]]:
    for bound, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        if getattr(rule, bound, None) is not None:
            yield sign, getattr(rule, bound)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
