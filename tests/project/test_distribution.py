"""What is shipped: wheel and source distribution, the demo from the wheel, types for those who import it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import uhkd
from uhkd.recipe import recipe_names

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/ of a copy of the source, as `make dist` builds it, offline."""
    pytest.importorskip("build")
    place = tmp_path_factory.mktemp("source")
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist")]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return place / "dist"


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files as an installation lays them out, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def from_wheel(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds uhkd in the wheel's files alone: they come before all else on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *words], cwd=site.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_package_and_nothing_else(site: Path):
    source = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "uhkd").rglob("*.py")}
    shipped = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file() and "dist-info" not in str(p)}
    recipes = {f"uhkd/recipes/{name}.yaml" for name in recipe_names()}
    templates = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src/uhkd").glob("*/templates/*")}
    assert templates and shipped == source | recipes | templates | {"uhkd/py.typed"}
    (metadata,) = site.glob("*.dist-info/METADATA")
    assert f"Version: {uhkd.__version__}\n" in metadata.read_text(encoding="utf-8")
    assert (metadata.parent / "licenses" / "LICENSE").is_file()
    assert "uhkd = uhkd.__main__:main" in (metadata.parent / "entry_points.txt").read_text(encoding="utf-8")


def test_the_source_distribution_has_what_it_needs_to_build_and_nothing_large(built: Path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        sizes = {member.name.partition("/")[2]: member.size for member in tar.getmembers() if member.isfile()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/uhkd/py.typed", "src/uhkd/__init__.py"} <= set(sizes)
    assert {f"src/uhkd/recipes/{name}.yaml" for name in recipe_names()} <= set(sizes)
    assert max(sizes.values()) < 300_000 and sum(sizes.values()) < 5_000_000
    assert not [name for name in sizes if name.startswith(("runs/", "results/", ".venv"))]


def test_the_demo_runs_from_the_wheel(site: Path, tmp_path: Path):
    where = from_wheel(site, "-c", "import uhkd; print(uhkd.__file__)")
    assert Path(where.stdout.strip()) == site / "uhkd" / "__init__.py"
    done = from_wheel(site, "-m", "uhkd", "demo", "--quick", "--out", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "demo" / "compare.md").is_file() and "uhkd" in done.stdout
    listed = from_wheel(site, "-m", "uhkd", "recipes", "digits/vit")
    assert listed.stdout == (ROOT / "src/uhkd/recipes/digits/vit.yaml").read_text(encoding="utf-8")


CALLER = """\
import uhkd

result = uhkd.distill(teacher="a", student="b", data="digits", epochs=3)
reveal_type(result.metrics)
reveal_type(result.metrics["val_accuracy"])
reveal_type(result.student)
reveal_type(result.run.path)
reveal_type(uhkd.load_run("run"))
reveal_type(uhkd.evaluate(run="run"))
reveal_type(uhkd.predict(run="run", images=["x.png"]))
reveal_type(uhkd.__version__)
"""
REVEALED = [
    "dict[str, float]",
    "float",
    "FeatureExtractor",
    "Path",
    "FeatureExtractor",
    "dict[str, Any]",
    "Predictions",
    "str",
]


def test_type_checkers_see_the_types(tmp_path: Path):
    pytest.importorskip("pyright")
    (tmp_path / "caller.py").write_text(CALLER, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("import uhkd\nx: int = uhkd.load_run('run')\n", encoding="utf-8")
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"pythonVersion": "3.11", "extraPaths": ["{(ROOT / "src").as_posix()}"]}}', encoding="utf-8"
    )
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "caller.py", "wrong.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    told = [line.split(" is ")[-1].strip('"') for line in lines if "caller.py" in line and "Type of" in line]
    assert told == REVEALED, done.stdout
    errors = [line for line in lines if " error: " in line]
    assert len(errors) == 1 and "wrong.py:2" in errors[0], done.stdout
