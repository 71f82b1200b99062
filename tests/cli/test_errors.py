"""Every mistake of docs/errors.md on real files: its whole answer, and the page itself."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from references.errors import AREAS, page, shelf
from references.errors.case import Case, answer
from uhkd.cli.advice import fit_advice
from uhkd.cli.parser import SCHEMAS, flag
from uhkd.console import DRY_RUN, OPTIONS
from uhkd.recipe import DataOptions

COMMON = {*OPTIONS, DRY_RUN, "--config"}
# options of another command that is named, and those that depend on the network
ELSEWHERE = re.compile(
    r".*; in compare, |unknown option \S+|(uhkd|torchrun|its command|in distill) [^;)]*"
    r"|\(--start, --student-start, --teacher-start\)"
)
CASES = [pytest.param(case, id=f"{area}: {case.did}") for area, cases in AREAS.items() for case in cases]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shelf")
    shelf.build(place)
    return place


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_gets_its_answer(case: Case, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shelf.take(made, case.has)
    case.make()
    said = answer(case)
    assert case.answered(said), said
    assert not Path("executed").exists(), "code in a file was run"
    # a training that had begun keeps its checkpoint
    assert not Path("new").exists() or "; the checkpoint of step" in said, "what is refused leaves nothing behind"


def test_a_line_is_added_only_for_a_further_problem():
    for case in (case for cases in AREAS.values() for case in cases if case.refused):
        first, *others = case.says.split("\n")
        assert first.endswith(":") == bool(others), case
        assert all(line.startswith("  ") for line in others), case


def options_in(text: str) -> set[str]:
    return {*re.findall(r"--[a-z][-a-z]+", ELSEWHERE.sub("", text))}


def test_advice_names_options_of_the_command_only():
    for case in (case for cases in AREAS.values() for case in cases if isinstance(case.ask, str)):
        command = re.match("(--quiet )?(cache verify|[^ ]*)", str(case.ask))
        if command is not None and command[2] in SCHEMAS:
            assert options_in(case.says) <= {*map(flag, SCHEMAS[command[2]].model_fields)} | COMMON, case


@pytest.mark.parametrize("command", ["eval", "inspect", "export", "push", "cache verify"])
def test_advice_on_data_loses_what_a_command_lacks_and_nothing_else(command: str):
    data, own = ({*map(flag, schema.model_fields)} for schema in (DataOptions, SCHEMAS[command]))
    for case in (case for cases in AREAS.values() for case in cases):
        assert options_in(fit_advice(case.says, command)) == options_in(case.says) - (data - own), case


def test_what_varies_is_all_that_may_differ():
    case = Case("", "", "found … bytes (…)\n  - now")
    assert case.answered("found 17 bytes (a|b)\n  - now")
    for said in (
        "found bytes (a)\n  - now",
        "found 1 bytes (a\nb)\n  - now",
        "found 1 bytes (a)\n  - now\n",
        "found 1 bytes ()\n  - now",
    ):
        assert not case.answered(said)
    assert not replace(case, says="found .*").answered("found 1")


def test_the_page_is_what_the_cases_render():
    assert page.PAGE.read_text(encoding="utf-8") == page.render()
