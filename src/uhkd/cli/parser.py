"""Command-line flags into a validated object: tyro reads and explains the flags, pydantic judges the values."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from uhkd.console import OPTIONS
from uhkd.recipe import (
    CacheRecipe,
    CompareRecipe,
    DistillRecipe,
    FinetuneRecipe,
    RecipeError,
    StrictModel,
    TrainRecipe,
    arguments,
    build,
    did_you_mean,
    find_recipe,
    load_yaml,
    scalar,
)

SCHEMAS: dict[str, type[StrictModel]] = {
    "demo": arguments.DemoArguments,
    "models": arguments.ModelsArguments,
    "recipes": arguments.RecipesArguments,
    "inspect": arguments.InspectArguments,
    "finetune": FinetuneRecipe,
    "distill": DistillRecipe,
    "compare": CompareRecipe,
    "cache": CacheRecipe,
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

CONFIGURED = (TrainRecipe, CompareRecipe, CacheRecipe)  # may begin with a recipe's words (-c)
_OPTION = re.compile(r"--?[a-zA-Z]")  # and no negative number


class _NotGiven(str):
    """The default of all that is text on the command line: it must be a string too."""


_NOT_GIVEN = _NotGiven()


def parse(command: str, argv: Sequence[str]) -> StrictModel:
    """The validated object of one verb's command line; flags go before the values of `-c`'s YAML file.

    Raises `RecipeError` with all unknown flags, missing and unfit values at once; `SystemExit(0)` after --help.
    """
    schema = SCHEMAS[command]
    given, problems = read_flags(command, schema, argv)
    mapping: dict[str, Any] = {}
    config = given.pop("config", None)
    if config is not None:
        mapping = load_yaml(find_recipe(config))
    for key, value in given.items():
        below = mapping.get(key)
        mapping[key] = {**below, **value} if isinstance(value, dict) and isinstance(below, dict) else value
    try:
        built = build(schema, mapping)
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from None
    if problems:
        raise RecipeError(problems)
    return built


def read_flags(command: str, schema: type[StrictModel], argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Only what the command line says, as raw values by field name, and its problems (unknown flags, bad pairs)."""
    typed = form(schema)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed, unknown = tyro.cli(
                typed,
                prog=f"uhkd {command}",
                description=f"{schema.__doc__}\n\nOptions of every verb: {', '.join(OPTIONS)}; uhkd --help explains them.",
                args=list(argv),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise RecipeError([_without_value(schema, argv)]) from None
    flags = {_flag(name): name for name in shown_fields(schema)}
    problems = _unknown(
        unknown,
        [*flags, *OPTIONS, "--help", *(["--config"] if issubclass(schema, CONFIGURED) else [])],
    )
    written = {token.split("=", 1)[0].replace("_", "-") for token in argv}
    given: dict[str, Any] = {}
    for field in dataclasses.fields(typed):
        value = getattr(parsed, field.name)
        info = schema.model_fields.get(field.name)
        if value is _NOT_GIVEN or value == []:
            continue
        if info is not None and is_flag(info):
            # tyro fills in a default, so a flag counts only where its name was typed
            if {_flag(field.name), _flag(f"no_{field.name}")} & written:
                given[field.name] = value
        elif info is not None and get_origin(info.annotation) is dict:
            pairs, bad = _pairs(field.name, [pair for group in value for pair in group])
            given[field.name] = pairs
            problems += bad
        elif info is not None and _are_mappings(info):
            given[field.name] = [scalar(given) for given in value]
        elif isinstance(value, str) and value.lower() in ("none", "null") and info and _nullable(info):
            given[field.name] = None
        else:
            given[field.name] = value
    return given, problems


def form(schema: type[StrictModel], choices: Callable[[str], Sequence[str]] = lambda name: ()) -> type:
    """A data class that tyro can show: the schema's fields as raw text, all optional, required ones first.

    choices: the only words that tyro lets a field have; none: any, as pydantic judges them with better messages.
    """
    positional: tuple[str, ...] = getattr(schema, "positional", ())
    fields: list[tuple[str, Any, Any]] = []
    if issubclass(schema, CONFIGURED):
        config = tyro.conf.arg(
            aliases=["-c"],
            help="recipe to start from: a YAML file, a run folder or a packaged recipe's name; other flags override it",
            help_behavior_hint="(optional)",
        )
        text = _text(1, "RECIPE", choices("config"))
        fields.append(("config", Annotated[str, text, config], dataclasses.field(default=_NOT_GIVEN)))
    for name in shown_fields(schema):
        info = schema.model_fields[name]
        hint = "(required)" if info.is_required() else f"(default: {_shown_default(info.default)})"
        config = tyro.conf.arg(name=_flag(name)[2:], help=info.description, help_behavior_hint=hint)
        if is_flag(info):
            fields.append((name, Annotated[bool, config], dataclasses.field(default=bool(info.default))))
            continue
        spec = _spec(info, name.upper() if name in positional else None, choices(name))
        if get_origin(info.annotation) is dict:
            kind: Any = tyro.conf.UseAppendAction[Annotated[list[Annotated[Any, spec]], config]]
            fields.append((name, kind, dataclasses.field(default_factory=list)))
        else:
            text = str in (info.annotation, *get_args(info.annotation))
            kind = Annotated[str if text else Any, spec, config]  # shells offer files for what is a string
            kind = tyro.conf.Positional[kind] if name in positional else kind
            fields.append((name, kind, dataclasses.field(default=_NOT_GIVEN)))
    return dataclasses.make_dataclass(schema.__name__, fields)


def shown_fields(schema: type[StrictModel]) -> list[str]:
    """Field names in the order of the help: positional, required, the schema's own, the shared ones."""
    positional: tuple[str, ...] = getattr(schema, "positional", ())
    own = schema.__annotations__
    fields = schema.model_fields

    def rank(name: str) -> int:
        return 0 if name in positional else 1 if fields[name].is_required() else 2 if name in own else 3

    return sorted(fields, key=rank)


def _spec(info: FieldInfo, called: str | None, choices: Sequence[str]) -> PrimitiveConstructorSpec[Any]:
    """How many words a field takes and what the help calls them (by type, unless `called`); they stay text."""
    annotation = info.annotation
    parts = [part for part in (get_args(annotation) or (annotation,)) if part is not NoneType]
    many = any((get_origin(part) or part) is tuple for part in [annotation, *parts])
    if get_origin(annotation) is dict:
        metavar, many = "KEY=VALUE ...", True
    elif get_origin(annotation) is Literal:
        metavar = "{" + ",".join(str(choice) for choice in get_args(annotation)) + "}"
    else:
        inner = get_args(annotation)[0] if get_origin(annotation) is tuple else parts[0]
        metavar = (called or {int: "INT", float: "NUMBER"}.get(inner, "TEXT")) + (" ..." if many else "")
    return _text("*" if many else 1, metavar, choices)


def _text(nargs: Literal["*", 1], metavar: str, choices: Sequence[str]) -> PrimitiveConstructorSpec[Any]:
    """One word, or a list of any number, taken as it is."""
    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=lambda words: words[0] if nargs == 1 else list(words),
        is_instance=lambda _: True,
        str_from_instance=lambda _: [],
        choices=tuple(choices) or None,
    )


def _are_mappings(info: FieldInfo) -> bool:
    inner = get_args(info.annotation)[:1] if get_origin(info.annotation) is tuple else ()
    return bool(inner) and isinstance(inner[0], type) and issubclass(inner[0], StrictModel)


def is_flag(info: FieldInfo) -> bool:
    return info.annotation in (bool, bool | None)


def _nullable(info: FieldInfo) -> bool:
    return NoneType in get_args(info.annotation)


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # schema_: pydantic has the name without


def _shown_default(value: Any) -> str:
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pairs(name: str, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """KEY=VALUE words as a mapping with YAML values, and the words that are none."""
    pairs: dict[str, Any] = {}
    bad: list[str] = []
    for given in words:
        key, sign, value = given.partition("=")
        if key and sign:
            pairs[key] = scalar(value)
        else:
            bad.append(f"{_flag(name)}: expected KEY=VALUE, found {given!r}")
    return pairs, bad


def _unknown(tokens: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Unknown flags with the nearest known ones; the values that follow them are passed over."""
    problems: list[str] = []
    after_flag = False
    for token in tokens:
        if _OPTION.match(token):
            given = token.split("=", 1)[0].replace("_", "-")
            problems.append(f"unknown option {token.split('=', 1)[0]}{did_you_mean(given, flags)}")
            after_flag = True
        elif not after_flag:
            problems.append(f"unexpected argument {token!r}")
    return problems


def _without_value(schema: type[StrictModel], argv: Sequence[str]) -> str:
    """The option without its value: the only mistake at which tyro itself stops, as all fields are optional text."""
    taking = {_flag(name) for name, info in schema.model_fields.items() if not is_flag(info)} | {"--config", "-c"}
    for given, after in pairwise([*argv, "--end"]):
        if given.replace("_", "-") in taking and _OPTION.match(after):
            return f"{given}: needs a value, found none"
    return "the options cannot be read; `uhkd VERB --help` lists them"
