"""Pages of Markdown as their readers use them: fenced blocks in order, and every command of uhkd that they show."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^ *```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(?P<text>[^`]+)`", re.DOTALL)
_COMMAND = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*torchrun .*?-m uhkd|sbatch \S*slurm\.sh \S+|python3? -m uhkd|(?:\.venv/bin/)?uhkd) "
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


class Command(NamedTuple):
    """A command line of uhkd: `words` without the program's name; `is_complete` unless the page leaves something out."""

    words: tuple[str, ...]
    is_complete: bool


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [Block(m["language"], m["text"]) for m in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[Command]:
    """All command lines of uhkd: in fenced or indented blocks a line each, and in code within sentences."""
    text = page.read_text(encoding="utf-8")
    shown = "".join(m["text"] for m in _FENCE.finditer(text) if m["language"] in ("", "bash", "sh", "console", "shell"))
    prose = _FENCE.sub("", text)
    lines = [line.strip() for line in shown.replace("\\\n", " ").splitlines()]
    lines += [line.strip() for line in prose.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    # a table's cells hold their bars escaped
    lines += [" ".join(m["text"].replace("\\|", "|").split()) for m in _INLINE.finditer(prose)]
    return [command for line in lines if (command := _command(line))]


def _command(line: str) -> Command | None:
    begun = _COMMAND.match(line)
    if not begun:
        return None
    words = shlex.split(line[begun.end() :].split(" | ")[0].split(" > ")[0], comments=True)
    left_out = {word for word in words if word.strip(".…") == ""}
    return Command(tuple(word for word in words if word not in left_out), not left_out)
