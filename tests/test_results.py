"""Committed figures: the pages say what results/*.json hold, and every file holds what a number must travel with."""

import importlib.util
import json
import statistics
from pathlib import Path

import pytest

from uhkd.commands.summary import by_method, mean_sd, table, verdicts

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "results").glob("*.json"))


def renderer():
    spec = importlib.util.spec_from_file_location("render", ROOT / "results" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_rendered_from_the_files():
    for path, content in renderer().pages().items():
        assert path.read_text() == content, f"{path.name}: run python results/render.py"


def test_there_are_results():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_file_holds_recipe_versions_commit_seeds_and_hardware(path):
    summary = json.loads(path.read_text())
    assert summary["recipes"] and summary["teacher"]["recipe"]["epochs"] >= 1
    assert {"torch", "timm", "uhkd"} <= set(summary["environment"]["versions"])
    assert summary["environment"]["cpu_cores"] >= 1
    for run in summary["runs"]:
        assert run["commit"] and run["seed"] >= 0
        assert 0 <= run["accuracy"] <= 1
        if summary["part"] == "val":
            assert run["accuracy"] == run["metrics"]["val_accuracy"]
            assert run["metrics"]["epoch"] == summary["recipes"][run["student"]]["epochs"], "not the last epoch"
    counts = {len(seeds) for methods in by_method(summary).values() for seeds in methods.values()}
    assert len(counts) == 1 and counts.pop() >= 2, "every cell has the same seeds, at least two"


def example(uhkd, scratch):
    runs = [
        {"student": "s", "method": m, "seed": i, "accuracy": a, "parameters": 1_500_000}
        for m, values in (("scratch", scratch), ("uhkd", uhkd))
        for i, a in enumerate(values)
    ]
    return {"runs": runs[::-1], "teacher": {"accuracy": 0.9}}


def test_table_and_verdicts_are_arithmetic():
    summary = example([0.8, 0.81, 0.82], [0.7, 0.72, 0.71])
    assert table(summary)[1][:3] == ["s", "1.50 M", "90.00"]
    assert set(table(summary)[1][3:]) == {"81.00 ± 1.00", "71.00 ± 1.00"}
    (line,) = verdicts(summary)
    half = 4.302653 * statistics.stdev([10, 9, 11]) / 3**0.5  # Student's t at 0.975 with 2 degrees of freedom
    assert f"uhkd minus scratch +10.00 ± {half:.2f} points (95 % over seeds: a difference)" in line
    (line,) = verdicts(example([0.8, 0.7, 0.75], [0.75, 0.75, 0.74]))
    assert "no difference shown" in line
    (line,) = verdicts(example([0.8, 0.7], [0.75, 0.75]))
    assert "+0.00 points (2 seeds: too few to tell)" in line
    assert mean_sd([0.5]) == "50.00"


def test_verdicts_pair_by_seed():
    summary = example([0.8, 0.81, 0.82, 0.9], [0.7, 0.72, 0.71])
    summary["runs"].reverse()
    (line,) = verdicts(summary)
    assert "+10.00" in line  # seed 3 of uhkd has no partner
