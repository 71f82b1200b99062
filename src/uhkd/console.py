"""Output: results on standard output, progress and messages on standard error, control characters escaped."""

import contextlib
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uhkd.errors import UhkdError, is_out_of_memory

# joiners are part of Persian words and of emoji, and harmless in a terminal
_JOINERS = frozenset("\u200c\u200d")
VERBOSITY = "UHKD_VERBOSITY"  # an environment variable, so that child processes inherit it
_PIPED = 1000  # columns of a table that is not printed to a terminal: rows are not folded, for grep
_START = time.monotonic()

# options of every command, before or after it
OPTIONS = {
    "--json": "print the result as one JSON document",
    "--quiet": "(-q) print only the result and errors",
    "--verbose": "(-v) print more: seconds, versions, every step, the traceback of an error",
}
DRY_RUN = "--dry-run"
# commands with --dry-run, and their functions for it
PLANS = {
    "demo": "plan_demo",
    "finetune": "plan_training",
    "distill": "plan_training",
    "cache": "plan_cache",
    "compare": "plan_compare",
    "export": "plan_export",
    "push": "push",
}
_FLAGS = {"-q": "quiet", "-v": "verbose", DRY_RUN: "dry_run"} | {name: name[2:] for name in OPTIONS}


@dataclass(frozen=True)
class OutputOptions:
    """Options of every command."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False


def parse_output_options(argv: Sequence[str]) -> tuple[OutputOptions, list[str]]:
    """Return the options of every command, at any position in `argv`, and the remaining arguments.

    Raises:
        UhkdError: for quiet and verbose together.
    """
    names = {_FLAGS[argument] for argument in argv if argument in _FLAGS}
    if {"quiet", "verbose"} <= names:
        raise UhkdError("--quiet and --verbose exclude each other; remove one")
    return OutputOptions(**dict.fromkeys(names, True)), [argument for argument in argv if argument not in _FLAGS]


@contextlib.contextmanager
def output_options(options: OutputOptions) -> Iterator[None]:
    """Apply quiet and verbose within a context, also to processes started there."""
    before = os.environ.get(VERBOSITY)
    level = "quiet" if options.quiet else "verbose" if options.verbose else before
    try:
        if level is not None:
            os.environ[VERBOSITY] = level
        yield
    finally:
        if before is None:
            os.environ.pop(VERBOSITY, None)
        else:
            os.environ[VERBOSITY] = before


def quiet() -> bool:
    """Return whether only results and errors are printed."""
    return os.environ.get(VERBOSITY) == "quiet"


def verbose() -> bool:
    """Return whether debug messages are printed."""
    return os.environ.get(VERBOSITY) == "verbose"


def is_rank_zero() -> bool:
    """Return whether this is the one process of a distributed training that prints."""
    return os.environ.get("RANK", "0") == "0"


def is_interactive() -> bool:
    """Return whether standard error can display a progress bar."""
    return not quiet() and is_rank_zero() and sys.stderr.isatty()


def log_info(line: str) -> None:
    """Print a message on standard error, so that results can be piped; only in the process of rank 0."""
    if is_rank_zero() and not quiet():
        when = f"[{time.monotonic() - _START:7.1f} s] " if verbose() else ""
        print(escape_lines(f"{when}{line}"), file=sys.stderr, flush=True)


def log_debug(line: str) -> None:
    """Print a message as `log_info`, only with --verbose."""
    if verbose():
        log_info(line)


def print_result(line: str) -> None:
    """Print a line of the result on standard output; only in the process of rank 0."""
    if is_rank_zero():
        print(escape_lines(line), flush=True)


def print_table(*parts: object) -> None:
    """Print rich tables and texts on standard output, as wide as the terminal, or without folding if piped.

    Cells that do not fit are folded, never cut. Colours only on terminals (respects NO_COLOR and FORCE_COLOR).
    """
    from rich.console import Console
    from rich.table import Table

    if not is_rank_zero():
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPED, markup=False, highlight=False, emoji=False)
    for part in parts:
        if isinstance(part, Table):
            for column in part.columns:
                column.overflow = "fold"
    # not printed by rich, which ends the process if a reader closes the pipe
    with console.capture() as output:
        console.print(*parts, sep="\n")
    print("\n".join(line.rstrip() for line in output.get().splitlines()), flush=True)


def escape(text: str) -> str:
    """Return the text on one line with escapes (`\\x1b`, `\\n`, `\\u202e`) for characters that a terminal executes or hides.

    These are control characters, line ends, marks of writing direction, invisible characters, and surrogates for bytes of a
    file name that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_plain(char) else char.encode("unicode_escape").decode() for char in text)


def escape_lines(text: str) -> str:
    """Return the text escaped except for its line ends and tabs, for messages of several lines."""
    return "\n".join("\t".join(map(escape, line.split("\t"))) for line in text.split("\n"))


def join(names: Sequence[str]) -> str:
    """Return 'a', 'a and b', 'a, b and c'; "" without names."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def pluralize(number: int, singular: str, plural: str | None = None) -> str:
    """Return '1 shard', '2 shards', '1,797 images'."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(names: Sequence[object], limit: int = 8) -> str:
    """Return the names, escaped; those beyond the first `limit` as a number: 'a, b and 3 more'."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(escape(str(name)) for name in names[:limit]) + more


def file_size(amount: float) -> str:
    """Return a number of bytes as '512 bytes', '3.2 MB'."""
    from rich.filesize import decimal

    return decimal(round(amount))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none; short where memory runs out."""
    if is_out_of_memory(error):
        return "not enough memory"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_plain(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"
