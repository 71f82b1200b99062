"""The package as shipped: light import, one version, no registry hosts, complete public names."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import uhkd
from uhkd.recipe import did_you_mean

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    """The repository's text files: what git tracks or would track."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, text=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    suffixes = {".py", ".toml", ".txt", ".md", ".yaml", ".cff", ".json", ""}
    return [
        path
        for name in listing.stdout.split("\0")
        if name and (path := ROOT / name).is_file() and path.suffix in suffixes
    ]


def test_import_is_light():
    heavy = ["torch", "torchvision", "timm", "numpy", "pydantic", "tyro", "rich", "matplotlib"]
    script = f"import sys, uhkd; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    for name in uhkd.__all__:
        assert getattr(uhkd, name) is not None
    assert set(dir(uhkd)) == set(uhkd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        uhkd.nonsense  # noqa: B018


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]  # read from uhkd.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == uhkd.__version__
    assert f"## [{uhkd.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_no_registry_hosts_and_no_machine_paths():
    # written in pieces so that this file does not find itself
    forbidden = re.compile(
        "|".join(
            ["pypi" + r"\.org", "python" + "hosted", "index" + "-url", "find" + "-links", "/" + "opt/", "/" + "root/"]
        )
    )
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in tracked()
        for line in path.read_text().splitlines()
        if forbidden.search(line)
    ]
    assert not found


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[>=<!~ ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names <= pinned
    assert "+" not in "".join(lines)  # a local version such as +cpu exists on one index only


def test_oldest_constraints_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        (lowest,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        assert pinned[requirement.name] in SpecifierSet(f"=={lowest}.*"), line


def test_shapes_are_checked_under_pytest():
    with pytest.raises(TypeCheckError):
        did_you_mean(3, [])  # pyright: ignore[reportArgumentType]
