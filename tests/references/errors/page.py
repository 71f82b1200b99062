"""docs/errors.md from the cases: `PYTHONPATH=src:tests python -m references.errors.page` writes it."""

from pathlib import Path

from references.errors import AREAS
from references.errors.case import Case

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"
_HEAD = """\
# Errors

The tests (`tests/cli/test_errors.py`) run every row on real files and compare the message. `…` stands for variable text: a
number, a path, a message of another library. On the command line a message follows `uhkd COMMAND: error:` on standard error,
and the exit code is 2. In Python it is the message of a `UhkdError`, a `ValueError`. Rows in italics are not errors: uhkd
accepts this input, and the row shows the notice that it prints, or what it reads.

Written by `PYTHONPATH=src:tests python -m references.errors.page`.
"""


def render() -> str:
    """Return the page."""
    parts = [_HEAD]
    for area, cases in AREAS.items():
        parts.append(f"\n## {area}\n\n| input | message or result |\n| --- | --- |\n")
        parts += [f"| {case.did} | {_answer(case)} |\n" for case in cases]
    return "".join(parts)


def _answer(case: Case) -> str:
    """Return the lines of the message, protected from Markdown; `|` would end a cell."""
    lines = (line.strip().replace("|", "\\|") for line in case.says.split("\n"))
    return "<br>".join(f"`` {line} ``" if case.refused else f"*{line}*" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
