"""Command-line options as validated objects: tyro parses them and prints the help, pydantic validates the values."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from uhkd.console import OPTIONS
from uhkd.recipe import RecipeError, StrictModel, arguments, build, did_you_mean, find_recipe, load_yaml, scalar
from uhkd.recipe.json_schema import RECIPES
from uhkd.recipe.old_names import RECIPE_KEYS
from uhkd.recipe.other_tools import other_name

SCHEMAS: dict[str, type[StrictModel]] = {
    "demo": arguments.DemoArguments,
    "models": arguments.ModelsArguments,
    "recipes": arguments.RecipesArguments,
    "inspect": arguments.InspectArguments,
    **RECIPES,
    "cache verify": arguments.VerifyArguments,
    "watch": arguments.WatchArguments,
    "eval": arguments.EvalArguments,
    "predict": arguments.PredictArguments,
    "report": arguments.ReportArguments,
    "export": arguments.ExportArguments,
    "push": arguments.PushArguments,
    "index": arguments.IndexArguments,
    "doctor": arguments.DoctorArguments,
    "completion": arguments.CompletionArguments,
}

_OLD_SPELLINGS = {"topk": ("--top",)}  # of options, still accepted
CONFIGURED = tuple(RECIPES.values())  # accept a recipe to start from (-c)
_OPTION = re.compile(r"--?[a-zA-Z]")  # does not match a negative number


class _NotGiven(str):
    """Default of every option with text: tyro requires a string."""


_NOT_GIVEN = _NotGiven()


def parse(command: str, argv: Sequence[str]) -> StrictModel:
    """Return the validated options of a command line; they take precedence over the YAML file of `-c`.

    Raises:
        RecipeError: with all unknown options, missing options and invalid values.
        SystemExit: with code 0, after --help.
    """
    schema = SCHEMAS[command]
    given, problems = read_flags(command, schema, argv)
    config = given.pop("config", None)
    mapping = {} if config is None else load_yaml(find_recipe(config))
    for key, value in given.items():
        default = mapping.get(key)
        mapping[key] = {**default, **value} if isinstance(value, dict) and isinstance(default, dict) else value
    try:
        options = build(schema, mapping)
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from None
    if problems:
        raise RecipeError(problems)
    return options


def read_flags(command: str, schema: type[StrictModel], argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the raw values of the options given in `argv` by field name, and problems (unknown options, invalid pairs)."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed, unknown = tyro.cli(
                options_dataclass(schema),
                prog=f"uhkd {command}",
                description=f"{schema.__doc__}\n\nOptions of every command: {', '.join(OPTIONS)} (see uhkd --help).",
                args=list(argv),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise RecipeError([_missing_value(schema, argv)]) from None
    config = ["--config"] if issubclass(schema, CONFIGURED) else []
    problems = _unknown_options(unknown, [*map(flag, ordered_fields(schema)), *OPTIONS, "--help", *config])
    written = {token.split("=", 1)[0].replace("_", "-") for token in argv}
    given: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        info = schema.model_fields.get(name)
        if value is _NOT_GIVEN or value == []:
            continue
        if info is None:
            given[name] = value
        elif is_flag(info):
            # tyro fills in the default: only what was typed counts as given
            if {flag(name), flag(f"no_{name}")} & written:
                given[name] = value
        elif get_origin(info.annotation) is dict:
            texts = [text for group in value for text in group]
            pairs = [text for text in texts if text.find("=") > 0]
            given[name] = {key: scalar(text) for key, _, text in (pair.partition("=") for pair in pairs)}
            problems += [f"{flag(name)}: expected KEY=VALUE, found {text!r}" for text in texts if text not in pairs]
        elif _is_list_of_models(info):
            given[name] = [scalar(text) for text in value]
        elif isinstance(value, str) and value.lower() in ("none", "null") and NoneType in get_args(info.annotation):
            given[name] = None
        else:
            given[name] = value
    return given, problems


def options_dataclass(schema: type[StrictModel], choices: Callable[[str], Sequence[str]] = lambda name: ()) -> type:
    """Return a data class for tyro: every field of the schema as optional raw text, required fields first.

    Args:
        schema: the options of a command.
        choices: the values that tyro accepts for a field, by name; none: any text, because pydantic's errors are better.
    """
    positional: tuple[str, ...] = getattr(schema, "positional", ())
    fields: list[tuple[str, Any, Any]] = []
    if issubclass(schema, CONFIGURED):
        config = tyro.conf.arg(
            aliases=["-c"],
            help="recipe to start from: a YAML file, a run folder or the name of a packaged recipe; other options override it",
            help_behavior_hint="(optional)",
        )
        text = _raw_text(1, "RECIPE", choices("config"))
        fields.append(("config", Annotated[str, text, config], dataclasses.field(default=_NOT_GIVEN)))
    for name in ordered_fields(schema):
        info = schema.model_fields[name]
        hint = "(required)" if info.is_required() else f"(default: {_format_default(info.default)})"
        old = _OLD_SPELLINGS.get(name)
        config = tyro.conf.arg(name=flag(name)[2:], aliases=old, help=info.description, help_behavior_hint=hint)
        if is_flag(info):
            fields.append((name, Annotated[bool, config], dataclasses.field(default=bool(info.default))))
            continue
        spec = _spec(info, name.upper() if name in positional else None, choices(name))
        if get_origin(info.annotation) is dict:
            kind: Any = tyro.conf.UseAppendAction[Annotated[list[Annotated[Any, spec]], config]]
            fields.append((name, kind, dataclasses.field(default_factory=list)))
        else:
            text = str in (info.annotation, *get_args(info.annotation))
            kind = Annotated[str if text else Any, spec, config]  # shells complete a str with files
            kind = tyro.conf.Positional[kind] if name in positional else kind
            fields.append((name, kind, dataclasses.field(default=_NOT_GIVEN)))
    return dataclasses.make_dataclass(schema.__name__, fields)


def ordered_fields(schema: type[StrictModel]) -> list[str]:
    """Return field names in the order of the help: positional, required, of the schema itself, inherited."""
    positional: tuple[str, ...] = getattr(schema, "positional", ())

    def rank(name: str) -> int:
        required = schema.model_fields[name].is_required()
        return 0 if name in positional else 1 if required else 2 if name in schema.__annotations__ else 3

    return sorted(schema.model_fields, key=rank)


def _spec(info: FieldInfo, metavar: str | None, choices: Sequence[str]) -> PrimitiveConstructorSpec[Any]:
    """Return how many arguments an option has, which stay text, and their name in the help (by type without `metavar`)."""
    union = get_origin(info.annotation) in (Union, UnionType)
    kinds = [kind for kind in (get_args(info.annotation) if union else (info.annotation,)) if kind is not NoneType]
    many = any(get_origin(kind) in (tuple, dict) for kind in kinds)
    value = get_args(kinds[0])[0] if get_origin(kinds[0]) is tuple else kinds[0]
    if get_origin(value) is dict:
        metavar = "KEY=VALUE"
    elif get_origin(value) is Literal:
        metavar = "{" + ",".join(map(str, get_args(value))) + "}"
    else:
        metavar = metavar or {int: "INT", float: "NUMBER"}.get(value, "TEXT")
    return _raw_text("*" if many else 1, metavar + " ..." * many, choices)


def _raw_text(nargs: Literal["*", 1], metavar: str, choices: Sequence[str]) -> PrimitiveConstructorSpec[Any]:
    """Return a tyro type for one text, or a list of any number, without conversion."""
    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=lambda texts: texts[0] if nargs == 1 else list(texts),
        is_instance=lambda _: True,
        str_from_instance=lambda _: [],
        choices=tuple(choices) or None,
    )


def _is_list_of_models(info: FieldInfo) -> bool:
    item = get_args(info.annotation)[0] if get_origin(info.annotation) is tuple else None
    return isinstance(item, type) and issubclass(item, StrictModel)


def is_flag(info: FieldInfo) -> bool:
    return info.annotation in (bool, bool | None)


def flag(name: str) -> str:
    """Return the option of a field on the command line."""
    return "--" + name.rstrip("_").replace("_", "-")  # schema_: a pydantic model has an attribute schema


def _format_default(value: Any) -> str:
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown_options(tokens: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return one problem per unknown option, with similar names; the arguments after it are skipped."""
    problems: list[str] = []
    after_flag = False
    for token in tokens:
        if _OPTION.match(token):
            option = token.split("=", 1)[0]
            renamed = flag(RECIPE_KEYS.get(option[2:].replace("-", "_"), ""))
            names = [flag[2:].replace("-", "_") for flag in flags]
            hint = f"; it is {renamed} now" if renamed in flags else other_name(option, names, flags=True)
            problems.append(f"unknown option {option}{hint or did_you_mean(option.replace('_', '-'), flags)}")
            after_flag = True
        elif not after_flag:
            problems.append(f"unexpected argument {token!r}")
    return problems


def _missing_value(schema: type[StrictModel], argv: Sequence[str]) -> str:
    """Return the problem of an option without value: tyro reports no other mistake, as all fields are optional text."""
    with_value = {flag(name) for name, info in schema.model_fields.items() if not is_flag(info)} | {"--config", "-c"}
    with_value |= {old for name in schema.model_fields for old in _OLD_SPELLINGS.get(name, ())}
    for option, following in pairwise([*argv, "--end"]):
        if option.replace("_", "-") in with_value and _OPTION.match(following):
            return f"{option}: needs a value, found none"
    return "the options cannot be parsed; `uhkd COMMAND --help` lists them"
