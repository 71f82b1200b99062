"""Committed figures: the pages say what results/*.json hold, and every file holds what a number must travel with."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from uhkd import load_run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
FILES = {
    str(path.relative_to(RESULTS)): json.loads(path.read_text())
    for path in sorted([*RESULTS.glob("*.json"), *RESULTS.glob("report/*.json")])
}
COMPARISONS = [name for name, content in FILES.items() if "runs" in content]
COSTS = [name for name in FILES if name not in COMPARISONS]


def renderer():
    spec = importlib.util.spec_from_file_location("render", ROOT / "results" / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_rendered_from_the_files():
    for path, content in renderer().pages().items():
        assert path.read_text() == content, f"{path.name}: run python results/render.py"


def test_there_are_results():
    assert COMPARISONS and COSTS


def check_environment(facts: dict) -> None:
    assert {"torch", "timm", "uhkd"} <= set(facts["versions"])
    assert facts["cpu_cores"] >= 1 and facts["threads"] >= 1


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "performance").glob("*.json")), ids=lambda path: path.stem)
def test_a_measurement_of_speed_holds_where_it_was_taken_and_no_places(path: Path):
    content = json.loads(path.read_text())
    check_environment(content["environment"])
    assert content["environment"]["commit"] and "+" not in content["environment"]["commit"]
    assert not re.search(r"\"(/|[A-Z]:)", json.dumps(content)), "a path of the machine"


@pytest.mark.parametrize(
    "path", sorted([*RESULTS.glob("search/*.json"), *RESULTS.glob("large/*.json")]), ids=lambda path: path.stem
)
def test_a_search_read_no_test_image_and_holds_what_it_rests_on(path: Path):
    summary = json.loads(path.read_text())
    assert summary["part"] == "val" and not summary["missing"]
    # options were added while the search ran: the page names all commits, and the words of older runs lack an option's default
    known = ("runs come from several commits", "differs from other runs of vit-micro in weights_schedule")
    assert all(any(words in line for words in known) for line in summary["warnings"])
    for run in summary["runs"]:
        schedule = run["differs"].get("weights_schedule", "constant")
        assert schedule == (run["method"] if run["method"] in ("linear", "cosine") else "constant")
    for facts in summary["environments"]:
        check_environment(facts)
    for run in summary["runs"]:
        assert run["commit"] and "+" not in run["commit"]
        assert run["accuracy"] == run["metrics"]["val_accuracy"]
        assert run["metrics"]["epoch"] == summary["pairs"][run["pair"]]["recipe"]["epochs"], "not the last epoch"
    assert not re.search(r"\"(/|[A-Z]:)", json.dumps(summary)), "a path of the machine"


def test_one_name_means_one_variant_in_the_whole_search():
    module = renderer()
    ablations = sys.modules["render_ablations"]
    content = ablations.searched()
    name, summary = next(iter(content.items()))
    changed = json.loads(json.dumps(summary))
    changed["runs"][0]["weights"] = {"features": 123.0}
    with pytest.raises(ValueError, match="and elsewhere"):
        ablations.gathered(content | {"other.json": changed})
    changed = json.loads(json.dumps(summary))
    changed["runs"][0]["accuracy"] += 0.5
    with pytest.raises(ValueError, match="has another result than elsewhere"):
        ablations.gathered(content | {"other.json": changed})
    with pytest.raises(ValueError, match="which no search may read"):
        ablations.gathered({name: summary | {"part": "test"}})
    with pytest.raises(ValueError, match="has a variant 'nonsense'"):
        ablations.table(*ablations.gathered(content), {"x": "nonsense"})
    assert module.ablations().startswith("# Ablations")


def test_two_sizes_agree_as_much_as_their_rankings():
    renderer()
    module = sys.modules["render_large"]
    small = json.loads((RESULTS / "large" / "cnn-vit-small.json").read_text())
    turned, short = json.loads(json.dumps(small)), json.loads(json.dumps(small))
    for run in turned["runs"]:
        run["accuracy"] = 1 - run["accuracy"]
    assert "rho 1.00, Kendall's tau 1.00" in module.agreement(small, small)
    assert "rho -1.00, Kendall's tau -1.00" in module.agreement(small, turned)
    ranks = {line[0]: (line[2], line[4]) for line in module.both(small, turned)[2:]}
    assert ranks["uhkd"] == ("7", "1") and ranks["scratch"] == ("1", "7")
    short["runs"] = [run for run in short["runs"] if run["method"] != "ofa"]
    assert "ofa" in ranks and "ofa" not in {line[0] for line in module.both(small, short)}
    assert "(6 methods). Large is **not yet run** by ofa." in module.agreement(small, short)
    again = module.large({"cnn-vit-small.json": small, "cnn-vit-large.json": small, "cnn-vit-again.json": short})
    assert "Run again with 3 seeds" in again
    alone = module.large({"cnn-vit-small.json": small})
    assert "not yet run" in alone


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "teachers").iterdir()), ids=lambda path: path.name)
def test_a_kept_teacher_loads_and_says_how_it_was_made_without_places(path: Path):
    teacher, result = load_run(path), json.loads((path / "result.json").read_text())
    assert teacher.config is not None and teacher.shapes.logits == len(teacher.config.classes)
    assert sum(p.numel() for p in teacher.parameters()) == result["parameters"]
    check_environment(result["environment"])
    assert result["environment"]["commit"] and "+" not in result["environment"]["commit"]
    assert result["metrics"]["val_accuracy"] > 0.3
    words = json.dumps([result, yaml.safe_load((path / "recipe.yaml").read_text())])
    assert not re.search(r"\"(/|[A-Z]:)", words), "a path of the machine"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "search" / "gradients").glob("*.json")), ids=lambda path: path.stem
)
def test_pulls_of_terms_hold_where_they_were_measured_and_no_places(path: Path):
    content = json.loads(path.read_text())
    check_environment(content["environment"])
    assert content["environment"]["commit"] and "+" not in content["environment"]["commit"]
    assert all(set(row["norm"]) == set(row["cosine_with_ce"]) >= {"ce"} for row in content["rows"])
    assert not re.search(r"\"(/|[A-Z]:)", json.dumps(content)), "a path of the machine"


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "why").glob("*.json")), ids=lambda path: path.stem)
def test_what_explains_holds_where_it_was_taken_and_no_places(path: Path):
    content = json.loads(path.read_text())
    check_environment(content["environment"])
    runs = [run for side in content["runs"].values() for run in side]
    assert all(run["commit"] and "+" not in run["commit"] for run in [*runs, content["environment"]])
    assert not re.search(r"\"(/|[A-Z]:)", json.dumps(content)), "a path of the machine"


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_holds_recipes_versions_commits_seeds_and_hardware(name: str):
    summary = FILES[name]
    assert not summary["missing"] and not summary["warnings"]
    for facts in summary["environments"]:
        check_environment(facts)
    for own in summary["pairs"].values():
        assert own["recipe"]["epochs"] >= 1 and own["teacher"]["recipe"]["epochs"] >= 1 and own["data_fingerprint"]
    for run in summary["runs"]:
        assert run["commit"] and "+" not in run["commit"], "measured with uncommitted changes"
        assert 0 <= run["accuracy"] <= 1 and run["environment"] < len(summary["environments"])
        assert run["metrics"]["epoch"] == summary["pairs"][run["pair"]]["recipe"]["epochs"], "not the last epoch"
        if summary["part"] == "val":
            assert run["accuracy"] == run["metrics"]["val_accuracy"]
    seeds = {}
    for run in summary["runs"]:
        seeds.setdefault((run["pair"], run["method"]), []).append(run["seed"])
    assert len({tuple(sorted(found)) for found in seeds.values()}) == 1, "every cell has the same seeds"
    assert len(next(iter(seeds.values()))) >= 2
    tried = {}
    for trial in summary["tuning"]:
        tried.setdefault((trial["pair"], trial["method"]), []).append(trial["taken"])
    assert all(len(found) == summary["settings_tried"] and sum(found) == 1 for found in tried.values()), (
        "unequal tuning"
    )
    variants = {(run["pair"], run["method"]) for run in summary["runs"] if run["method"] != run["joined"]}
    assert not tried or set(tried) == set(seeds) - variants, "a variant's words are its own"


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_holds_its_rounds_and_hardware(name: str):
    costs = FILES[name]
    check_environment(costs["environment"])
    assert costs["rounds"] >= 20 and costs["environment"]["commit"]


def part_of_a_report(accuracy: dict[str, list[float]], **changes) -> dict:
    """A comparison of one pair with three seeds a method."""
    runs = [
        {
            "pair": "own",
            "method": method,
            "seed": seed,
            "accuracy": value,
            "seconds": 60.0,
            "extra_parameters": 0,
            "environment": 0,
        }
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    teacher = {"name": "uhkd/vit_micro", "accuracy": 0.5}
    pair = {"teacher": teacher, "student": "uhkd/resnet10", "recipe": {"epochs": 10}, "data_fingerprint": "f"}
    facts = {
        "part": "test",
        "settings_tried": 3,
        "pairs": {"own": pair},
        "environments": [{"gpu": None}],
        "runs": runs,
        "tuning": [],
    }
    return facts | changes


def test_report_pairs_are_put_together_and_compared_by_seed_in_the_mean_over_pairs():
    renderer()
    report = sys.modules["render_report"]
    first = part_of_a_report({"kd": [0.20, 0.22, 0.24], "uhkd": [0.30, 0.33, 0.33]})
    second = part_of_a_report({"kd": [0.40, 0.40, 0.40], "uhkd": [0.41, 0.42, 0.43]})
    more = part_of_a_report({"rsd": [0.25, 0.25, 0.25]})
    whole = report.merged({"a-1.json": first, "a-2.json": more, "b-1.json": second}, "title")
    assert list(whole["pairs"]) == ["a", "b"] and len(whole["runs"]) == 15
    rows = {row[0]: row[1:] for row in report.gaps(whole, homogeneous=["b"])}
    # differences by seed 10, 11, 9 (sd 1): two standard errors are 2 / sqrt 3
    assert rows["kd"] == ["+10.00 ± 1.15", "+2.00 ± 1.15", "+10.00 ± 1.15"]
    rows = {row[0]: row[1:] for row in report.gaps(whole, homogeneous=[])}
    assert rows["kd"][-1] == "+6.00 ± 0.82"  # sqrt(1/3 + 1/3) / 2, twice
    assert rows["rsd"] == [rows["rsd"][0], "not run", "not run"]
    assert report.gaps(whole, homogeneous=["a", "b"])[0] == ["UHKD minus", "a", "b"]
    again = part_of_a_report({"uhkd": [0.35, 0.35, 0.35]}, environments=[{"gpu": "other"}])
    again["pairs"] = {"own": {**again["pairs"]["own"], "data": "elsewhere"}}
    again["pairs"]["own"]["teacher"] = {**again["pairs"]["own"]["teacher"], "accuracy": 0.501}
    later = report.merged({"a-10.json": again, "a-1.json": first, "a-2.json": more}, "title")
    assert report.scores(later)["uhkd"] == {"a": {0: 35.0, 1: 35.0, 2: 35.0}}, "measured again: the later numbers stand"
    assert len(later["runs"]) == 9 and {run["environment"] for run in later["runs"] if run["method"] == "uhkd"} == {1}
    with pytest.raises(ValueError, match="others differ"):
        report.merged({"a-1.json": first, "b-1.json": second | {"part": "val"}}, "title")
    other = json.loads(json.dumps(more))
    other["pairs"]["own"]["teacher"]["accuracy"] = 0.6
    with pytest.raises(ValueError, match=r"a-2\.json .* another pair"):
        report.merged({"a-1.json": first, "a-2.json": other}, "title")


def test_reliability_counts_failures_by_command_and_mutants_by_outcome(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(RESULTS))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from render_reliability import COMMANDS, FAULTS, reliability
    from soak import SIGNALS, TASKS

    facts = {"cpu_cores": 2, "versions": {"torch": "2"}, "commit": "abc"}
    soak = {"minutes": 60.2, "ended": dict.fromkeys(TASKS, 3), "lives": 40, "faults": dict.fromkeys(FAULTS, 2)}
    soak |= {"failures": ["cache: ended with 1"], "environment": facts}
    soak["memory (MB) and open files"] = {"over epochs": [[1.0, 5], [2.0, 6], [3.4, 7]]}
    tried = [("methods", "killed"), ("methods", "survived"), ("spectral", "timeout"), ("spectral", "killed")]
    mutants = {"seed": 0, "count": 200, "environment": facts}
    mutants["mutants"] = [{"group": group, "outcome": outcome} for group, outcome in tried]
    page = reliability({"soak.json": soak, "mutants.json": mutants})
    assert "60 minutes: 40 starts of commands, 22 faults, 1 failures." in page
    assert "| `cache` | 3 | 1 |" in page and "| SIGTERM | 2 |" in page and "2 to 3 MB, 6 to 7 open files" in page
    assert "4 of 200 mutants, drawn with seed 0, were tried: 75.0 % killed." in page
    assert "| methods | 2 | 1 | 0 | 1 |" in page and "| spectral | 2 | 1 | 1 | 0 |" in page
    assert COMMANDS.keys() == set(TASKS) and SIGNALS.keys() <= FAULTS.keys()
    assert reliability({}).count("Not yet run.") == 2
