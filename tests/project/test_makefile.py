"""`make` installs what a command needs, once, and begins anew what was cut short; the interpreter here only notes its words."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
# -c asks for its version, -m venv makes .venv of itself; all else is noted, and pip fails where a file `broken` lies
PYTHON = """\
#!/bin/sh
case "$1 $2" in
"-c "*) exit ${OLD:-0} ;;
"--version "*) echo Python 3.10 ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/uhkd" && echo venv >>log ;;
"-m pip") shift 2; echo "pip $*" >>log; [ ! -e broken ] ;;
*) echo "$(basename "$0") $*" >>log ;;
esac
"""
PIP = "pip install --disable-pip-version-check -c constraints.txt -e"
PLAIN, DEV = f"{PIP} .", f"{PIP} .[dev]"
DEMO, TEST = "uhkd demo --out runs/demo", "python -m pytest"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON, encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(here: Path, target: str, *, fails: bool = False, **variables: str) -> list[str]:
    """What was run for a target, in order; the tests' own options are left out."""
    log = here / "log"
    log.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | variables
    done = subprocess.run(["make", target, f"PYTHON={here / 'python'}"], cwd=here, env=environment, capture_output=True)
    assert (done.returncode != 0) == fails, done.stderr
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [TEST if line.startswith(TEST) else line for line in lines]


def newer(here: Path, name: str) -> None:
    """Change a file after everything that is there."""
    last = max(path.stat().st_mtime_ns for path in (here / ".venv").iterdir())
    os.utime(here / name, ns=(last + 1, last + 1))


def test_the_demo_installs_the_package_alone_and_once(here: Path):
    assert make(here, "demo") == ["venv", PLAIN, DEMO]
    assert make(here, "demo") == [DEMO]
    assert make(here, "install") == []


def test_the_tests_add_the_rest_once(here: Path):
    make(here, "install")
    assert make(here, "test") == [DEV, TEST]
    assert make(here, "test") == [TEST]
    assert make(here, "demo") == [DEMO]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_both_are_renewed_when_the_requirements_change(here: Path, name: str):
    make(here, "install-dev")
    newer(here, name)
    assert make(here, "demo") == ["venv", PLAIN, DEMO]
    assert make(here, "test") == [DEV, TEST]
    newer(here, name)
    assert make(here, "test") == ["venv", PLAIN, DEV, TEST]


@pytest.mark.parametrize("target", ["install", "install-dev"])
def test_what_was_cut_short_is_begun_anew(here: Path, target: str):
    if target == "install-dev":
        make(here, "install")
    (here / "broken").touch()
    make(here, target, fails=True)
    (here / ".venv" / "half").touch()
    (here / "broken").unlink()
    assert make(here, "demo") == ["venv", PLAIN, DEMO]
    assert not (here / ".venv" / "half").exists()
    assert make(here, "test") == [DEV, TEST]


def test_an_old_python_is_refused_before_anything_is_made(here: Path):
    assert make(here, "test", fails=True, OLD="1") == []
    assert not (here / ".venv").exists()
