"""Short trainings end where they ended before: to the bit by the same arithmetic, else within a tolerance (tests/golden)."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import uhkd
from golden import trainings as golden
from uhkd.__main__ import main

OLDER = Path(__file__).parent / "golden" / "26ff844"
GOLDEN = golden.read()
THEN: dict[str, Any] = json.loads((OLDER / "digests.json").read_text(encoding="utf-8"))
SAME = golden.conditions() == GOLDEN["conditions"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # Lightning's advice
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning asks torch in an older way
]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> golden.Trainings:
    return golden.Trainings(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in golden.SLOW else []) for case in golden.CASES]
)
def test_a_training_ends_where_it_ended(trainings: golden.Trainings, case: str):
    """Meant changes: python tests/golden/renew.py."""
    assert golden.differences(GOLDEN["cases"][case], trainings.measure(case), exact=SAME) == []


def test_the_arithmetic_is_that_of_the_file():
    """Say so where it is not: numbers are then compared within a tolerance."""
    if not SAME:
        pytest.skip(f"compared within {golden.TOLERANCE:g}: {golden.conditions()} is not {GOLDEN['conditions']}")


def test_every_method_has_a_training():
    """The message on an unknown method names them; a method without a training is reported as skipped."""
    with pytest.raises(ValueError, match="unknown method") as caught:
        uhkd.distill(method="none", teacher="teacher", student="uhkd/vit_micro", data="digits")
    known = re.search(r"known: ([\w, ]+)", str(caught.value))
    assert known is not None and set(known[1].split(", ")) >= set(golden.METHODS)
    if new := sorted(set(known[1].split(", ")) - set(golden.METHODS)):
        pytest.skip(f"no training of {new}: append to METHODS in tests/golden/trainings.py, run tests/golden/renew.py")


def test_a_change_of_any_kind_is_found():
    """By bits each of them, within the tolerance those that are more than rounding."""
    measured = GOLDEN["cases"]["method: uhkd"]
    for kind in ("names", "data", "weights", "arrays"):
        lines = golden.differences(measured, measured | {kind: "0"}, exact=True)
        assert lines == [f"{kind}: other bits"]
    for name, factor, found in (("uhkd.features", 1 + 1e-7, False), ("uhkd.features", 1 + 1e-3, True)):
        changed = copy.deepcopy(measured)
        changed["rows"][-1][name] *= factor
        assert len(golden.differences(measured, changed, exact=True)) == 1
        assert bool(golden.differences(measured, changed, exact=False)) == found
    overtaken = GOLDEN["cases"]["balance: lead of a teacher that is overtaken"]
    flipped = copy.deepcopy(overtaken)
    flipped["rows"][-1] |= {"lead": 0.9, "loss": 1.0}
    for exact, found in ((True, True), (False, False)):
        assert bool(golden.differences(overtaken, flipped, exact=exact)) == found
    flipped["rows"][0]["ce"] += 1
    assert len(golden.differences(overtaken, flipped, exact=False)) == 1
    for kind in ("projections", "result"):
        changed = copy.deepcopy(measured)
        changed[kind].popitem()
        assert len(golden.differences(measured, changed, exact=True)) == 1


# files that commit 26ff844 wrote


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its files somewhere else, as the working folder: their recipes name each other by relative paths."""
    folder = shutil.copytree(OLDER, tmp_path / "elsewhere" / "older")
    monkeypatch.chdir(folder)
    return folder


def assert_as_then(run: Path, wanted: golden.Measured, replaced: tuple[str, ...] = ()) -> None:
    """A run is the one that 26ff844 made; columns and results that it did not write are left out.

    `replaced`: metrics that are computed more exactly today; they are left out, and nothing is compared to the bit.
    """
    found = golden.of_run(run)
    found["result"] = {k: v for k, v in found["result"].items() if k in wanted["result"]}
    kept = set(wanted["rows"][0]) - set(replaced)
    of_then, of_today = (
        measured | {"rows": [{k: v for k, v in row.items() if k in kept} for row in measured["rows"]]}
        for measured in (wanted, found)
    )
    same = golden.conditions() == THEN["conditions"] and not replaced
    assert golden.differences(of_then, of_today, exact=same) == []


def config_fields(run: str) -> dict[str, Any]:
    """The recipe of a run as its keyword arguments."""
    return yaml.safe_load(Path(run, "recipe.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_an_older_run_opens(older: Path, name: str):
    said = json.loads((older / name / "result.json").read_text(encoding="utf-8"))["metrics"]
    network = uhkd.load_run(older / name)
    assert network.state_dict() and not network.training
    found = uhkd.evaluate(run=name, data="digits", split="val", device="cpu")
    for metric in ("accuracy", "nll"):
        assert found[metric] == pytest.approx(said[f"val_{metric}"], abs=1e-5)


def test_older_runs_are_reported(older: Path):
    told = uhkd.report(runs=("teacher", "student", "interrupted"), out="page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert len(told["runs"]) == 3 and told["notes"] == ["interrupted: not finished (1 of 2 epochs)"]
    for run in ("teacher", "student"):
        said = json.loads((older / run / "result.json").read_text(encoding="utf-8"))["metrics"]
        assert f"{100 * said['val_accuracy']:.2f}" in page


def test_the_recipe_of_an_older_run_trains_the_same(older: Path):
    """Its weights_schedule has another name today."""
    words = config_fields("student")
    assert words["weights_schedule"] == "cosine"
    assert_as_then(uhkd.distill(**words, out="again").run.path, golden.of_run(older / "student"))


def test_an_older_interrupted_training_is_resumed(older: Path):
    """By the words it was started with: its weights stayed constant, which is not this method's default today."""
    words = config_fields("interrupted")
    assert words.pop("weights_schedule") == "constant" and not (older / "interrupted" / "result.json").exists()
    assert [path.name for path in (older / "interrupted" / "checkpoints").iterdir()] == ["step-6"]
    assert_as_then(
        uhkd.distill(**words, out="interrupted", resume=True).run.path, THEN["interrupted"], ("crd.contrast",)
    )


def test_an_older_recipe_is_compared_before_resuming(older: Path):
    with pytest.raises(ValueError, match="with another recipe: seed was 0, now 1"):
        uhkd.distill(**{**config_fields("interrupted"), "seed": 1}, out="interrupted", resume=True)


def test_an_older_cache_teaches(older: Path):
    """By its records alone: its teacher is gone."""
    shutil.rmtree(older / "teacher")
    words = {k: v for k, v in config_fields("student").items() if k in ("student", "student_options", *golden.SHORT)}
    words |= {"teacher_cache": "cache", "balance": "constant", "seed": 3, "workers": 0}
    assert_as_then(uhkd.distill(**words, out="by-cache").run.path, THEN["cache"])


def test_an_older_cache_is_verified(older: Path):
    assert main(["cache", "verify", "cache", "--device", "cpu"]) == 0


def test_an_older_comparison_is_read(older: Path):
    summary = json.loads((older / "comparison" / "compare.json").read_text(encoding="utf-8"))
    told = uhkd.report(runs=("comparison",))
    page = (older / "comparison" / "report.html").read_text(encoding="utf-8")
    assert sorted(told["runs"]) == ["kd/seed-0", "scratch/seed-0"] and told["notes"] == []
    assert {run["method"] for run in summary["runs"]} == {"scratch", "kd"}
    for run in summary["runs"]:
        assert f"{100 * run['accuracy']:.2f}" in page


def test_older_files_name_no_place_of_a_machine():
    files = [path for path in OLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 420_000
    places = re.compile(rb"/(tmp|home|root|work|Users)/")
    assert [path.name for path in files if path.name != "make.py" and places.search(path.read_bytes())] == []
