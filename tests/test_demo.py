"""The demo: every packaged recipe is sound, earlier results are never touched, and the quick round does what it says."""

import json
from pathlib import Path

import pytest
from PIL import Image

from uhkd.__main__ import main
from uhkd.commands.demo import METHODS, STUDENTS, _new_folder
from uhkd.methods import check
from uhkd.models import create
from uhkd.recipe import DistillRecipe, FinetuneRecipe, build, find_recipe, load_yaml, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_name_networks_that_can_be_built(name: str):
    words = load_yaml(find_recipe(name))
    if "student" in words:
        recipe = build(DistillRecipe, words)
        check(recipe.method, recipe.settings, recipe.weights)
        model, options = recipe.student, recipe.student_options
    else:
        recipe = build(FinetuneRecipe, words)
        model, options = recipe.model, recipe.options
    network = create(model, num_classes=10, image_size=recipe.image_size, options=options)
    assert len(network.spectral_levels()) >= 2


def test_an_earlier_demo_is_left_alone(tmp_path: Path):
    assert _new_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert _new_folder(tmp_path / "demo") == tmp_path / "demo", "an empty folder is free"
    (tmp_path / "demo" / "demo.md").touch()
    (tmp_path / "demo-2").touch()
    assert _new_folder(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.slow
def test_the_quick_demo_trains_reports_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr()
    assert "uhkd" in said.out and "too few to tell" in said.err
    summary = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert {(run["student"], run["method"]) for run in summary["runs"]} == {
        (f"uhkd/{name}_micro", method) for name in ("vit", "mixer") for method in METHODS
    }
    assert summary["part"] == "test" and all(0 <= run["accuracy"] <= 1 for run in summary["runs"])
    for student in STUDENTS:
        for kind in ("curves", "spectra"):
            with Image.open(tmp_path / "demo" / f"{kind}-{student}.png") as picture:
                assert min(picture.size) > 300
            assert f"({kind}-{student}.png)" in (tmp_path / "demo" / "demo.md").read_text()
