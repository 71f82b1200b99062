"""Every command that README and docs show exists: its verb, its options and, where it is shown whole, its values; files too."""

import re
import tomllib
from pathlib import Path

import pytest

from references.pages import commands
from uhkd.__main__ import COMMANDS
from uhkd.cli.parser import SCHEMAS, parse, read_flags
from uhkd.console import parse_output_options
from uhkd.recipe import RecipeError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "errors.md")  # made of wrong commands and what they answer, each tried by test_errors.py
READERS_OWN = ("required but not given", "no recipe ")  # complaints about what a page leaves out or only its reader has


def complaints(words, whole):
    """What uhkd would say about a command line, but for files that only the reader has."""
    _, words = parse_output_options(list(words))
    verb, *rest = words or ("COMMAND",)
    if verb in ("-h", "--help", "--version", "COMMAND", "help"):
        return []
    if verb not in COMMANDS:
        return [f"unknown command {verb!r}"]
    if rest[:1] == ["verify"] and verb == "cache":
        verb, rest = "cache verify", rest[1:]
    if "--help" in rest:
        return []
    _, problems = read_flags(verb, SCHEMAS[verb], rest)
    if problems or not whole or not rest:  # `uhkd distill` in a sentence is a name
        return problems
    try:
        parse(verb, rest)
    except RecipeError as error:
        return [problem for problem in error.problems if not any(own in problem for own in READERS_OWN)]
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_the_page_exist(page):
    wrong = [
        (command.words, found)
        for command in commands(page)
        if (found := complaints(command.words, command.is_complete))
    ]
    assert not wrong, "\n".join(f"uhkd {' '.join(words)}: {found}" for words, found in wrong)


def test_commands_are_found_and_mistakes_in_them_too(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Run `uhkd eval runs/a`, or\n\n    uhkd predict runs/a --bottom 3   # comment\n\n"
        "```sh\ntorchrun --nproc-per-node 2 -m uhkd distill \\\n    --student a/b --epochs none ...\n"
        "uhkd destill --student x\n.venv/bin/uhkd finetune --model timm/x --data digits --epochs 0\n```\n"
    )
    found = commands(page)
    assert [command.words[0] for command in found] == ["distill", "destill", "finetune", "predict", "eval"]
    assert [command.is_complete for command in found] == [False, True, True, True, True]
    said = [complaints(*command) for command in found]
    assert said[0] == [] and said[4] == []
    assert "unknown command" in said[1][0] and "--bottom" in said[3][0]
    assert said[2] and "epochs" in said[2][0]
    assert len([command for page in PAGES for command in commands(page)]) > 60


def test_readme_stays_short():
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 110


def missing(text, folders):
    """Paths in code font (with a slash, or Python files) that exist below none of the folders."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.py)`", text)
    return [name for name in named if not any((folder / name).exists() for folder in folders)]


@pytest.mark.parametrize("page", ["README.md", "docs/reading-order.md", "docs/add-a-method.md"])
def test_files_named_on_the_page_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("src/uhkd/methods/logit_mse.py", "")  # the reader's
    package = ROOT / "src" / "uhkd"
    assert not missing(
        text, [ROOT, package, package / "methods", package / "spectral", package / "commands" / "comparing"]
    )
    assert missing("`training/nothing.py`, `docs/`, `fourier.py`, `nothing.py`", [ROOT, package / "spectral"]) == [
        "training/nothing.py",
        "nothing.py",
    ]


def test_the_table_of_import_layers_is_the_one_that_is_enforced():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    page = (ROOT / "docs" / "reading-order.md").read_text(encoding="utf-8").partition("| layer | content |")[2]
    shown = re.findall(r"^\| (`[\w`, ]+`) \|", page.partition("\n\n")[0], re.MULTILINE)
    assert [row.replace("`", "").split(", ") for row in shown] == [x.split(" | ") for x in contracts[0]["layers"]]
