"""docs/errors.md from the cases: `PYTHONPATH=src:tests python -m references.errors.page` writes it."""

from pathlib import Path

from references.errors import AREAS
from references.errors.case import Case

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"
_HEAD = """\
# What goes wrong, and what uhkd says

Every row is tried by `tests/cli/test_errors.py` on real files, and the answer compared word by word. `…` stands for what varies: a
number, a place, another library's words. On the command line an answer follows `uhkd COMMAND: error:` on standard error, and
the exit code is 2; in Python it is the message of a `ValueError`. Rows in italics are no mistakes: such input is read, in
the way that the row says.

Written by `PYTHONPATH=src:tests python -m references.errors.page`.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD]
    for area, cases in AREAS.items():
        parts.append(f"\n## {area}\n\n| what you did | what uhkd says |\n| --- | --- |\n")
        parts += [f"| {case.did} | {_answer(case)} |\n" for case in cases]
    return "".join(parts)


def _answer(case: Case) -> str:
    """Its lines, whatever Markdown would make of them; `|` would end a cell."""
    lines = (line.strip().replace("|", "\\|") for line in case.says.split("\n"))
    return "<br>".join(f"`` {line} ``" if case.refused else f"*{line}*" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
