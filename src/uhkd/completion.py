"""`uhkd completion`: scripts by which shells complete verbs, options and values, made from the schemas; no torch."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from uhkd.arguments import CompletionArguments
from uhkd.cli import CONFIGURED, SCHEMAS, is_flag, shown_fields
from uhkd.recipe import Schema, build, recipe_names
from uhkd.recipe.method_table import METHODS
from uhkd.telling import DRY_RUN, OPTIONS, PLANS, put

_RECIPES = ("config", "pairs", "teachers", "names")
_METHODS = ("method", "methods")
_NO_PATHS = (*_METHODS, "title", "pattern", "randaugment", "keep")


@dataclass(frozen=True)
class Option:
    """What a shell should know of an option or of a verb's words without one (`flag` empty).

    values: words to offer; files: offer those too; many: it takes more than one word; takes: it takes any.
    """

    flag: str
    help: str
    values: tuple[str, ...] = ()
    files: bool = False
    many: bool = False
    takes: bool = True


def completion(arguments: CompletionArguments | None = None, **words: Any) -> str:
    """Print a shell's completion script and return it."""
    asked = arguments or build(CompletionArguments, words)
    script = _SCRIPTS[asked.shell]({verb: options_of(verb) for verb in SCHEMAS})
    put(script.rstrip("\n"))
    return script


def options_of(verb: str) -> list[Option]:
    """A verb's options in the order of its help, those of every verb last."""
    schema = SCHEMAS[verb]
    found: list[Option] = []
    if issubclass(schema, CONFIGURED):
        recipes = tuple(recipe_names())
        found += [Option(flag, "recipe to start from", recipes, files=True) for flag in ("--config", "-c")]
    for name in shown_fields(schema):
        found += _options(schema, name)
    common = OPTIONS | ({DRY_RUN: "settle and check, write nothing"} if verb in PLANS else {})
    return [*found, *(Option(flag, said, takes=False) for flag, said in common.items())]


def _options(schema: type[Schema], name: str) -> list[Option]:
    info = schema.model_fields[name]
    word, said = name.rstrip("_").replace("_", "-"), info.description or ""
    if is_flag(info):
        return [Option(f"--{word}", said, takes=False), Option(f"--no-{word}", said, takes=False)]
    kinds = [kind for kind in (get_args(info.annotation) or (info.annotation,)) if kind is not NoneType]
    many = (
        tuple in {get_origin(kind) or kind for kind in (info.annotation, *kinds)} or get_origin(info.annotation) is dict
    )
    kind = get_args(info.annotation)[0] if get_origin(info.annotation) is tuple else info.annotation
    literal = next((part for part in (kind, *kinds) if get_origin(part) is Literal), None)
    values = tuple(map(str, get_args(literal))) if literal else ()
    values = tuple(recipe_names()) if name in _RECIPES else tuple(METHODS) if name in _METHODS else values
    files = str in kinds and get_origin(info.annotation) is not dict and name not in _NO_PATHS
    flag = "" if name in getattr(schema, "positional", ()) else f"--{word}"
    return [Option(flag, said, values, files, many)]


def _verbs(options: Iterable[str]) -> dict[str, str]:
    """Verbs of one word and what they do, a sentence each."""
    return {verb: (SCHEMAS[verb].__doc__ or "").split("\n")[0] for verb in options if " " not in verb}


def _bash(verbs: dict[str, list[Option]]) -> str:
    """A function by bash's own means: no package bash-completion is needed."""
    flags = "".join(
        f"    {shlex.quote(verb)}) flags={shlex.quote(' '.join(o.flag for o in options if o.flag))} ;;\n"
        for verb, options in verbs.items()
    )
    values = "".join(
        f"    {shlex.quote(f'{verb}:{o.flag}')}) many={int(o.many)} files={int(o.files)} "
        f"values={shlex.quote(' '.join(o.values))} ;;\n"
        for verb, options in verbs.items()
        for o in options
        if o.takes
    )
    first = " ".join([*_verbs(verbs), *OPTIONS, "--help", "--version"])
    return f"""\
# uhkd's words in bash, made by `uhkd completion bash`
_uhkd_flags() {{
    case $1 in
{flags}    esac
}}
_uhkd_values() {{
    many=0 files=0 values=""
    case $1 in
{values}    *) return 1 ;;
    esac
}}
_uhkd() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} verb="" flag="" flags="" values="" many=0 files=0 after=0 i word
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        case $word in
        -*) flag=$word after=0 ;;
        *) if [[ -z $verb ]]; then verb=$word flag=""; else after=$((after + 1)); fi ;;
        esac
    done
    [[ $verb == cache && " ${{COMP_WORDS[*]}} " == *" cache verify "* ]] && verb="cache verify"
    COMPREPLY=()
    if [[ -z $verb ]]; then
        COMPREPLY=($(compgen -W {shlex.quote(first)} -- "$cur"))
        return
    fi
    if [[ $cur == -* ]]; then
        _uhkd_flags "$verb"
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
        return
    fi
    if [[ -z $flag ]] || ! _uhkd_values "$verb:$flag" || [[ $many == 0 && $after -gt 0 ]]; then
        _uhkd_values "$verb:" # a word that belongs to no option
    fi
    [[ $verb == cache && $COMP_CWORD == 2 ]] && values="$values verify"
    COMPREPLY=($(compgen -W "$values" -- "$cur"))
    if [[ $files == 1 ]]; then
        compopt -o filenames 2>/dev/null
        local IFS=$'\\n'
        COMPREPLY+=($(compgen -f -- "$cur"))
    fi
}}
complete -F _uhkd uhkd
"""


def _zsh(verbs: dict[str, list[Option]]) -> str:
    """A function for zsh's completion system, as a file `_uhkd` in fpath or by eval."""

    def described(words: Iterable[tuple[str, str]]) -> str:
        return " ".join(shlex.quote(f"{word}:{said}") for word, said in words)

    flags = "".join(
        f"    {shlex.quote(verb)}) flags=({described((o.flag, o.help) for o in options if o.flag)}) ;;\n"
        for verb, options in verbs.items()
    )
    values = "".join(
        f"    {shlex.quote(f'{verb}:{o.flag}')}) many={int(o.many)} files={int(o.files)} values=({shlex.join(o.values)}) ;;\n"
        for verb, options in verbs.items()
        for o in options
        if o.takes
    )
    first = described([*_verbs(verbs).items(), *OPTIONS.items()])
    return f"""\
#compdef uhkd
# uhkd's words in zsh, made by `uhkd completion zsh`
_uhkd_flags() {{
    case $1 in
{flags}    esac
}}
_uhkd_values() {{
    many=0 files=0 values=()
    case $1 in
{values}    *) return 1 ;;
    esac
}}
_uhkd() {{
    local cur=${{words[CURRENT]}} verb="" flag="" word
    local -a flags values first
    local -i many=0 files=0 after=0 i
    for ((i = 2; i < CURRENT; i++)); do
        word=${{words[i]}}
        case $word in
        -*) flag=$word after=0 ;;
        *) if [[ -z $verb ]]; then verb=$word flag=""; else after+=1; fi ;;
        esac
    done
    [[ $verb == cache && " $words " == *" cache verify "* ]] && verb="cache verify"
    if [[ -z $verb ]]; then
        first=({first})
        _describe verb first
        return
    fi
    if [[ $cur == -* ]]; then
        _uhkd_flags $verb
        _describe -o option flags
        return
    fi
    if [[ -z $flag ]] || ! _uhkd_values $verb:$flag || (( ! many && after )); then
        _uhkd_values $verb: # a word that belongs to no option
    fi
    [[ $verb == cache && $CURRENT == 3 ]] && values+=(verify)
    (( $#values )) && compadd -a values
    (( files )) && _files
    return 0
}}
if [[ ${{funcstack[1]}} == _uhkd ]]; then _uhkd "$@"; else compdef _uhkd uhkd; fi
"""


def _fish(verbs: dict[str, list[Option]]) -> str:
    """One `complete` a word, as fish wants it."""
    lines = ["# uhkd's words in fish, made by `uhkd completion fish`", "complete -c uhkd -f"]
    lines += [
        f"complete -c uhkd -n __fish_use_subcommand -a {verb} -d {_fished(said)}"
        for verb, said in _verbs(verbs).items()
    ]
    lines += [
        f"complete -c uhkd -n __fish_use_subcommand -l {name[2:]} -d {_fished(said)}" for name, said in OPTIONS.items()
    ]
    lines.append(
        "complete -c uhkd -n '__fish_seen_subcommand_from cache; and not __fish_seen_subcommand_from verify' -a verify"
    )
    for verb, options in verbs.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
        if verb == "cache":
            seen += "; and not __fish_seen_subcommand_from verify"
        for option in options:
            dashes = (
                ""
                if not option.flag
                else f" {'-l' if option.flag.startswith('--') else '-s'} {option.flag.lstrip('-')}"
            )
            words = f" -a {_fished(' '.join(option.values))}" if option.values else ""
            files = " -F" if option.files else ""
            needs = "" if not (option.takes and option.flag) else " -r" if option.files else " -x"
            if dashes or words or files:
                lines.append(
                    f"complete -c uhkd -n {_fished(seen)}{dashes}{needs}{files}{words} -d {_fished(option.help)}"
                )
    return "\n".join(lines) + "\n"


def _fished(text: str) -> str:
    """Text in fish's single quotes, in which a backslash and a quote are escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: dict[str, Callable[[dict[str, list[Option]]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
