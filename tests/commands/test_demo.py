"""The demo: its recipes are sound, earlier results are never touched, and the quick round does what it says."""

import json
from pathlib import Path

import pytest
from PIL import Image

from uhkd.__main__ import main
from uhkd.commands.demo import METHODS, STUDENTS, new_folder
from uhkd.methods import parse_methods
from uhkd.models import create
from uhkd.recipe import DistillRecipe, FinetuneRecipe, build, find_recipe, load_yaml


@pytest.mark.parametrize("name", ["teacher", *STUDENTS])
def test_its_recipes_name_networks_with_levels_to_compare(name: str):
    words = load_yaml(find_recipe(f"digits/{name}"))
    if name == "teacher":
        recipe = build(FinetuneRecipe, words)
        model, options = recipe.model, recipe.options
    else:
        recipe = build(DistillRecipe, words)
        model, options = recipe.student, recipe.student_options
        for method in METHODS:
            parse_methods(method, recipe.settings, recipe.weights)
    network = create(model, num_classes=10, image_size=recipe.image_size, options=options)
    assert sum(min(grid) >= 3 for _, *grid in network.shapes.maps) >= 2, "large enough for spectra"


def test_an_earlier_demo_is_left_alone(tmp_path: Path):
    assert new_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert new_folder(tmp_path / "demo") == tmp_path / "demo", "an empty folder is free"
    (tmp_path / "demo" / "compare.md").touch()
    (tmp_path / "demo-2").touch()
    assert new_folder(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.slow
def test_the_quick_demo_trains_reports_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr()
    assert "uhkd" in said.out and "too few seeds to tell" in said.err
    summary = json.loads((tmp_path / "demo" / "compare.json").read_text())
    assert sorted((run["pair"], run["method"], run["seed"]) for run in summary["runs"]) == sorted(
        (student, method, 0) for student in STUDENTS for method in METHODS
    )
    assert summary["missing"] == {} and summary["part"] == "test"
    assert all(0 <= run["accuracy"] <= 1 for run in summary["runs"])
    table = (tmp_path / "demo" / "compare.md").read_text()
    assert "Handwritten digits" in table and all(f"| {method} |" in table for method in METHODS)
    for student in STUDENTS:
        for kind in ("curves", "spectra"):
            with Image.open(tmp_path / "demo" / f"{kind}-{student}.png") as picture:
                assert min(picture.size) > 300
