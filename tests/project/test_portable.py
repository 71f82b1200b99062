"""What would not work on Windows or macOS: found by reading the source, as this machine has neither."""

import ast
import os
import re
from pathlib import Path

import pytest

from uhkd.cache.shards import Shard
from uhkd.data.file_cache import OpenFiles
from uhkd.recipe import recipe_names

SOURCE = Path(__file__).parents[2] / "src" / "uhkd"
FILES = sorted(SOURCE.rglob("*.py"))

# modules and attributes that Windows lacks (some also macOS)
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "curses", "readline", "syslog", "crypt"}
ATTRIBUTES = {
    "os": {
        "fork",
        "forkpty",
        "getuid",
        "geteuid",
        "getgid",
        "sysconf",
        "sched_getaffinity",
        "sched_setaffinity",
        "killpg",
        "mkfifo",
        "setsid",
        "getpgid",
        "statvfs",
        "posix_fadvise",
        "pread",
        "pwrite",
        "preadv",
        "sendfile",
        "getloadavg",
        "uname",
        "chown",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_CLOEXEC",
    },
    "signal": {
        "SIGUSR1",
        "SIGUSR2",
        "SIGKILL",
        "SIGHUP",
        "SIGALRM",
        "SIGQUIT",
        "SIGCHLD",
        "pthread_sigmask",
        "setitimer",
        "alarm",
        "sigwait",
    },
    "time": {"tzset"},
}
GUARDS = re.compile(r"hasattr\(|getattr\(|os\.name|sys\.platform|except (\(?[\w., ]*)?(ImportError|AttributeError)")
RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\.|$)")


def around(tree: ast.AST, node: ast.AST, text: str) -> str:
    """The source of the function that a node stands in, or of the statement at the top of the module."""
    line = node.lineno  # pyright: ignore[reportAttributeAccessIssue]
    inside = [
        f
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try) and f.lineno <= line <= (f.end_lineno or 0)
    ]
    found = max(inside, key=lambda f: f.lineno, default=None)
    functions = [f for f in inside if not isinstance(f, ast.Try)]
    return ast.get_source_segment(text, functions[-1] if functions else found) or "" if found is not None else ""


def unguarded(text: str) -> list[str]:
    """What a source uses that Windows lacks, outside of any check for it."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"] if node.attr in ATTRIBUTES.get(node.value.id, ()) else []
        if names and not GUARDS.search(around(tree, node, text)):
            found += [f"line {node.lineno}: {name}" for name in names]
    return found


def test_the_scan_finds_what_it_is_for():
    assert unguarded("import fcntl\n") == ["line 1: fcntl"]
    assert unguarded("import os\ndef f():\n    return os.getuid()\n") == ["line 3: os.getuid"]
    assert unguarded("try:\n    import resource\nexcept ImportError:\n    resource = None\n") == []
    assert unguarded("import os\ndef f():\n    return os.getuid() if hasattr(os, 'getuid') else 0\n") == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(SOURCE).as_posix())
def test_nothing_is_used_that_other_systems_lack(file: Path):
    assert unguarded(file.read_text(encoding="utf-8")) == []


def test_places_of_one_system_are_looked_for_before_they_are_read():
    """/proc and the like may be missing: each use asks whether it is there, or takes an error for an answer."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        for match in re.finditer(r"\"/(proc|dev|sys|tmp|etc)\b[^\"]*\"", text):
            assert re.search(r"is_file\(\)|is_dir\(\)|exists\(\)|suppress\(OSError\)|except OSError", text), (
                file,
                match[0],
            )
            assert match[1] not in ("tmp", "etc"), (file, match[0])


def test_text_is_read_and_written_in_an_encoding_that_is_named():
    """On Windows the default may be cp1252: text files with names of classes are UTF-8 everywhere."""
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "safe_yaml":  # ours, of UTF-8 alone
                continue
            if node.func.attr in ("read_text", "write_text") and not any(k.arg == "encoding" for k in node.keywords):
                found.append(f"{file.relative_to(SOURCE)}:{node.lineno}")
    ascii_only = {"commands/comparing/memory.py", "commands/comparing/cost_tables.py", "training/machine.py"}
    assert [place for place in found if place.split(":")[0] not in ascii_only] == []


def test_names_that_we_give_files_are_allowed_everywhere():
    names = [
        *(name for recipe in recipe_names() for name in f"{recipe}.yaml".split("/")),
        *Shard(0, 0, 0, 1).name.split("/"),
    ]
    names += [part for file in FILES for part in file.relative_to(SOURCE).parts]
    for file in FILES:  # names written out in the source
        text = file.read_text(encoding="utf-8")
        names += re.findall(r"\"([\w.{}-]+\.(?:json|yaml|npz|csv|md|png|tex|txt|bin|safetensors|lock|pid|tmp))\"", text)
        assert not re.search(r"strftime\(\"[^\"]*%H:%M[^\"]*\"\)[^\n]*\.(json|png|txt)", text)
    bad = [name for name in names if re.search(r"[<>:\"|?*\\]|[. ]$", name) or RESERVED.match(name)]
    assert bad == []
    paths = [file.relative_to(SOURCE).as_posix().lower() for file in FILES]
    recipes = [name.lower() for name in recipe_names()]
    assert len(set(paths)) == len(paths) and len(set(recipes)) == len(recipes)


def test_run_folders_by_time_have_names_allowed_everywhere(monkeypatch: pytest.MonkeyPatch):
    from uhkd.recipe import DistillRecipe, build
    from uhkd.training.inputs import run_folder

    made = run_folder(
        build(DistillRecipe, {"teacher": "t", "student": "s", "data": "d", "method": "uhkd+dkd"}), "uhkd+dkd"
    )
    assert re.fullmatch(r"uhkd\+dkd-\d{8}-\d{6}", made.path.name)


def test_files_are_read_by_position_where_the_system_has_no_call_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    (tmp_path / "b").write_bytes(bytes(range(100, 200)))
    monkeypatch.delattr(os, "preadv")
    read = OpenFiles(most=1)
    for name, offset, wanted in (
        ("a", 10, range(10, 14)),
        ("b", 98, range(198, 200)),
        ("a", 0, range(4)),
        ("a", 200, ()),
    ):
        buffer = bytearray(4)
        assert read.read_into(buffer, tmp_path / name, offset) == len(wanted)
        assert bytes(buffer[: len(wanted)]) == bytes(wanted)
