"""One mistake and its answer."""

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uhkd
from uhkd.__main__ import main


@dataclass(frozen=True)
class Case:
    """What a person does in a folder, and the whole answer.

    did: the mistake, in a few words. ask: a command line of `uhkd`, or a call. says: the answer; `…` stands for what varies, such
    as another library's words. has: what lies in the folder (see `shelf`). make: what is made there before. refused: else it is
    no mistake here, and the call returns what happens.
    """

    did: str
    ask: str | Callable[[], object]
    says: str
    has: tuple[str, ...] = ()
    make: Callable[[], object] = lambda: None
    refused: bool = True

    def answered(self, said: str) -> bool:
        """Whether an answer is the one that stands here."""
        return re.fullmatch("[^\n]+?".join(map(re.escape, self.says.split("…"))), said) is not None


def answer(case: Case) -> str:
    """What is said in the current folder, which is called … in it.

    Raises:
        AssertionError: for a command line that is not refused as a user's mistake is, or a call that returns what it should
            refuse.
    """
    if not callable(case.ask):
        return _anywhere(_complaint(case.ask))
    with contextlib.redirect_stderr(io.StringIO()):
        if not case.refused:
            return str(case.ask())
        try:
            case.ask()
        except ValueError as error:
            return _anywhere(str(error))
    raise AssertionError("nothing was refused")


def _complaint(line: str) -> str:
    """What stands behind "error:" on stderr; nothing may stand on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line))
    said = err.getvalue()
    assert (code, out.getvalue()) == (2, ""), f"exit code {code}: {out.getvalue()}{said}"
    return said.partition(": error: ")[2].removesuffix("\n")


def _anywhere(said: str) -> str:
    places = {str(Path.cwd()): "…", str(Path(uhkd.__file__).parent): "…"}
    for place, name in places.items():
        said = said.replace(place, name)
    return said
