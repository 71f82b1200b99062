"""`uhkd completion`: the script by which a shell completes verbs, options and choices, written by tyro; no torch."""

import contextlib
import dataclasses
import io
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from uhkd.cli.parser import SCHEMAS, form
from uhkd.console import DRY_RUN, OPTIONS, PLANS, print_result
from uhkd.recipe import build, recipe_names
from uhkd.recipe.arguments import CompletionArguments
from uhkd.recipe.method_table import METHODS

_CHOICES = {name: tuple(recipe_names()) for name in ("config", "pairs", "teachers")}
_CHOICES |= dict.fromkeys(("method", "methods"), tuple(METHODS))

# tyro offers files only behind options: bash falls back to them where nothing else fits, as for a run folder
_BASH = """
_uhkd_or_files() { _tyro_uhkd; [[ -n ${COMPREPLY[*]} ]] || COMPREPLY=(); }
complete -o default -F _uhkd_or_files uhkd
"""


def completion(arguments: CompletionArguments | None = None, **options: Any) -> str:
    """Print a shell's completion script and return it."""
    parsed = arguments or build(CompletionArguments, options)
    commands = [_subcommand(command) for command in SCHEMAS if " " not in command]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(reduce(or_, commands), prog="uhkd", args=["--tyro-write-completion", parsed.shell, "-"])
    script = printed.getvalue() + (_BASH if parsed.shell == "bash" else "")
    print_result(script.rstrip("\n"))
    return script


def _subcommand(command: str) -> Any:
    """A verb with the options of every verb, and the verbs below it (`cache verify`), for tyro."""
    schema = SCHEMAS[command]

    def choices(name: str) -> tuple[str, ...]:
        kind = schema.model_fields[name].annotation if name in schema.model_fields else None
        kinds = (kind, *get_args(kind), *(inner for part in get_args(kind) for inner in get_args(part)))
        literal = next((get_args(one) for one in kinds if get_origin(one) is Literal), ())
        return _CHOICES.get(name) or tuple(map(str, literal))

    common = OPTIONS | ({DRY_RUN: "settle and check, write nothing"} if command in PLANS else {})
    fields: list[Any] = []
    for flag, help_text in common.items():
        short = [flag[1:3]] if f"({flag[1:3]})" in help_text else []
        config = tyro.conf.arg(name=flag[2:], aliases=short, help=help_text)
        fields.append((flag[2:].replace("-", "_"), tyro.conf.FlagCreatePairsOff[Annotated[bool, config]], False))
    for below in (name for name in SCHEMAS if name.startswith(f"{command} ")):
        kind = tyro.conf.OmitArgPrefixes[_subcommand(below) | Annotated[None, tyro.conf.Suppress]]
        fields.append(("below", kind, tyro.MISSING))
    offered = dataclasses.make_dataclass(schema.__name__, fields, bases=(form(schema, choices),))
    return Annotated[offered, tyro.conf.subcommand(command.split()[-1], prefix_name=False)]
