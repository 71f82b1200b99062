"""Who is told what: the result on standard output, all that is said on the way to it on standard error."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from uhkd.text import shown_lines

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
_WORDS = {"-q": "quiet", "-v": "verbose", DRY_RUN: "dry_run"} | {name: name[2:] for name in OPTIONS}


@dataclass(frozen=True)
class Manner:
    """How a command line wants to be answered."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False


def manner_of(argv: Sequence[str]) -> tuple[Manner, list[str]]:
    """The options that every verb understands, wherever they stand, and the other words.

    Raises:
        ValueError: for quiet and verbose together.
    """
    found = {_WORDS[word] for word in argv if word in _WORDS}
    if {"quiet", "verbose"} <= found:
        raise ValueError("--quiet and --verbose ask for opposite things; leave one of them out")
    manner = Manner(**{field.name: field.name in found for field in fields(Manner)})
    return manner, [word for word in argv if word not in _WORDS]


@contextlib.contextmanager
def speaking(manner: Manner) -> Iterator[None]:
    """What is said inside is said in this manner, also by processes that are started there."""
    before = os.environ.get(VERBOSITY)
    asked = "quiet" if manner.quiet else "verbose" if manner.verbose else before
    try:
        if asked is not None:
            os.environ[VERBOSITY] = asked
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


def first_process() -> bool:
    """Whether this is the one of several processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def live() -> bool:
    """Whether a bar or a table that moves can be shown on standard error."""
    return not quiet() and first_process() and sys.stderr.isatty()


def say(line: str) -> None:
    """One line for the person at the terminal, on standard error so that results can be piped; from the first process alone."""
    if first_process() and not quiet():
        when = f"[{time.monotonic() - _BEGAN:7.1f} s] " if verbose() else ""
        print(shown_lines(f"{when}{line}"), file=sys.stderr, flush=True)


def say_more(line: str) -> None:
    """As `say`, where more than usual is wanted."""
    if verbose():
        say(line)


def put(line: str) -> None:
    """One line of the result, on standard output; from the first process alone."""
    if first_process():
        print(shown_lines(line), flush=True)


def show(*parts: object) -> None:
    """Parts of the result that rich draws (tables, texts), on standard output: as wide as the terminal, or whole where piped.

    Cells that do not fit are folded, never cut. Colour only on terminals (NO_COLOR and FORCE_COLOR are obeyed).
    """
    from rich.console import Console
    from rich.table import Table

    if not first_process():
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
