"""What is printed: the result on standard output, progress and messages on standard error; control characters are escaped."""

import contextlib
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from uhkd.errors import UhkdError

# parts of words in Persian and of emoji: a terminal obeys neither
_JOINERS = frozenset("\u200c\u200d")
VERBOSITY = "UHKD_VERBOSITY"  # in the environment, so that processes that a verb starts speak as it does
_PIPED = 1000  # columns of a table that is no terminal's: its rows stay whole for grep
_BEGAN = time.monotonic()

# what every verb understands, before the verb and behind it
OPTIONS = {
    "--json": "the result as one JSON document on standard output",
    "--quiet": "(-q) the result and errors, nothing on the way",
    "--verbose": "(-v) more on the way: seconds, versions, every step, the trace of an error",
}
DRY_RUN = "--dry-run"
# verbs that can be asked what they would do, and the function that settles it
PLANS = {
    "demo": "plan_demo",
    "finetune": "plan_training",
    "distill": "plan_training",
    "cache": "plan_cache",
    "compare": "plan_compare",
    "export": "plan_export",
    "push": "plan_push",
}
_FLAGS = {"-q": "quiet", "-v": "verbose", DRY_RUN: "dry_run"} | {name: name[2:] for name in OPTIONS}


@dataclass(frozen=True)
class OutputOptions:
    """How a command line wants to be answered."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False


def parse_output_options(argv: Sequence[str]) -> tuple[OutputOptions, list[str]]:
    """The options that every verb understands, wherever they stand, and the other words.

    Raises:
        UhkdError: for quiet and verbose together.
    """
    found = {_FLAGS[argument] for argument in argv if argument in _FLAGS}
    if {"quiet", "verbose"} <= found:
        raise UhkdError("--quiet and --verbose ask for opposite things; leave one of them out")
    chosen = OutputOptions(**{field.name: field.name in found for field in fields(OutputOptions)})
    return chosen, [argument for argument in argv if argument not in _FLAGS]


@contextlib.contextmanager
def output_options(chosen: OutputOptions) -> Iterator[None]:
    """What is said inside is said in this manner, also by processes that are started there."""
    before = os.environ.get(VERBOSITY)
    level = "quiet" if chosen.quiet else "verbose" if chosen.verbose else before
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
    """Whether only results and errors are wanted."""
    return os.environ.get(VERBOSITY) == "quiet"


def verbose() -> bool:
    """Whether more than usual is wanted."""
    return os.environ.get(VERBOSITY) == "verbose"


def is_rank_zero() -> bool:
    """Whether this is the one of several processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def is_interactive() -> bool:
    """Whether a bar or a table that moves can be shown on standard error."""
    return not quiet() and is_rank_zero() and sys.stderr.isatty()


def log_info(line: str) -> None:
    """One line for the person at the terminal, on standard error so that results can be piped; from the first process alone."""
    if is_rank_zero() and not quiet():
        when = f"[{time.monotonic() - _BEGAN:7.1f} s] " if verbose() else ""
        print(escape_lines(f"{when}{line}"), file=sys.stderr, flush=True)


def log_debug(line: str) -> None:
    """As `log_info`, where more than usual is wanted."""
    if verbose():
        log_info(line)


def print_result(line: str) -> None:
    """One line of the result, on standard output; from the first process alone."""
    if is_rank_zero():
        print(escape_lines(line), flush=True)


def print_table(*parts: object) -> None:
    """Parts of the result that rich draws (tables, texts), on standard output: as wide as the terminal, or whole where piped.

    Cells that do not fit are folded, never cut. Colour only on terminals (NO_COLOR and FORCE_COLOR are obeyed).
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
    # printed by Python itself: rich would end the process where a reader closes the pipe
    with console.capture() as drawn:
        console.print(*parts, sep="\n")
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()), flush=True)


def escape(text: str) -> str:
    """The words on one line, with all that a terminal would obey or hide written out (`\\x1b`, `\\n`, `\\u202e`).

    Control characters, line ends, marks that change the direction of writing, invisible ones, and the surrogates that stand
    for bytes of a file name that are no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(letter if _plain(letter) else letter.encode("unicode_escape").decode() for letter in text)


def escape_lines(text: str) -> str:
    """As `escape`, with line ends and tabs left as they are: for messages of ours that have more than one line."""
    return "\n".join("\t".join(map(escape, line.split("\t"))) for line in text.split("\n"))


def pluralize(number: int, one: str, many: str | None = None) -> str:
    """'1 shard', '2 shards', '1,797 images'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def file_size(amount: float) -> str:
    """Bytes in words: '512 bytes', '3.2 MB'."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _plain(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"
