"""The measuring scripts work and write what they promise; how fast anything is, they say and no test does."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, out: Path, *words: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(out.read_text())
    assert "command" not in found["environment"]
    return found


def test_reading_is_measured_for_each_number_of_images(tmp_path: Path):
    found = run("stored.py", tmp_path / "x.json", "--images", "300", "3000", "--rounds", "1", "--seconds", "0.1")
    assert list(found["images"]) == ["300", "3000"] and found["record_bytes"] == 6352
    assert all(row["records_per_second"] > 0 for rounds in found["images"].values() for row in rounds)


def test_a_budget_that_is_spent_is_told_and_the_file_is_whole(tmp_path: Path):
    found = run("everything.py", tmp_path / "x.json", "--minutes", "0.01", "--sections", "reading", "options")
    assert found["sections"] == dict.fromkeys(("options", "reading"), "not run: no time left")


def test_a_section_that_fails_or_takes_too_long_says_so_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from everything import measure

    failed = measure(["stored.py", "--rounds", "none"], 60, os.environ)
    assert failed.startswith("failed: stored.py: error: argument --rounds") and "/tmp" not in failed
    began = time.monotonic()
    assert measure(["stored.py", "--seconds", "100"], 4, os.environ) == "not finished: no time left"
    assert time.monotonic() - began < 30
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "--seconds 100" not in running  # nor the process that it had started


@pytest.mark.slow
def test_options_of_the_step_are_set_against_the_packaged_one(tmp_path: Path):
    words = ["--rounds", "2", "--batch", "2", "--networks", "uhkd/vit_micro", "--options", "AdamW foreach"]
    found = run("options.py", tmp_path / "x.json", *words)["networks"]["uhkd/vit_micro"]
    assert list(found) == ["packaged", "AdamW foreach"] and found["packaged"]["to_packaged"]["mean"] == 1
    assert all(len(own["seconds"]) == 2 and own["to_packaged"]["mean"] > 0 for own in found.values())


@pytest.mark.slow
def test_writing_is_set_against_the_teacher_alone(tmp_path: Path):
    found = run("writing.py", tmp_path / "x.json", "--rounds", "2", "--images", "150", "--batch", "32")
    assert set(found["images_per_second"]) == {"write", "teacher"} and found["settings"]["images"] == 150
    assert found["writing_to_teacher"]["mean"] > 0


@pytest.mark.slow
def test_the_start_of_commands_is_timed_by_the_processor(tmp_path: Path):
    found = run("start.py", tmp_path / "x.json", "--rounds", "2")["commands"]
    assert {"--help", "recipes", "models uhkd/*", "watch --once run", "distil"} <= set(found)
    for own in found.values():
        assert len(own["processor_seconds"]) == len(own["wall_seconds"]) == 2
        assert min(own["processor_seconds"]) > 0 and own["target"] > 0


@pytest.mark.slow
def test_epochs_are_timed_live_and_stored(tmp_path: Path):
    words = ["--rounds", "2", "--images", "150", "--epochs", "2", "--batch", "32"]
    found = run("epochs.py", tmp_path / "x.json", *words, "--candidates", "scratch", "uhkd", "uhkd-stored")
    assert list(found["to_scratch"]) == ["scratch", "uhkd", "uhkd-stored"]
    assert all(len(own) == 2 and min(own) > 0 for own in found["seconds"].values())
    assert all(0 <= share < 1 for own in found["data_wait"].values() for share in own)


@pytest.mark.slow
def test_transform_is_set_against_rfft2_and_a_copy(tmp_path: Path):
    found = run("spectral.py", tmp_path / "x.json", "--rounds", "20", "--batch", "2")
    assert list(found["grids"]) == ["56", "28", "14", "7"] and found["copy_bytes_per_second"] > 0
    for own in found["grids"].values():
        assert own["extra_bytes"]["ours"] > 0 and own["share_of_copy"] > 0 and own["ours_to_rfft2"]["mean"] > 0


@pytest.mark.slow
def test_a_pair_is_stored_and_measured_live_and_stored(tmp_path: Path):
    words = ["--minutes", "9", "--rounds", "2", "--sections", "steps: resnet10--vit-micro-32"]
    (pair,) = run("everything.py", tmp_path / "x.json", *words)["sections"].values()
    methods = {"scratch", "kd", "uhkd", "ofa", "fitnet", "crd", "kd-stored", "uhkd-stored"}
    assert set(pair["methods"]) == methods and not pair["missing"]
    assert pair["methods"]["uhkd-stored"]["teacher"] == "stored teacher outputs"
    assert pair["record_bytes"]["int8"] < 0.7 * pair["record_bytes"]["fp16"]
    assert all(len(facts["seconds"]) == 2 for facts in pair["methods"].values())
    assert str(tmp_path) not in json.dumps(pair) and "/tmp" not in json.dumps(pair)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes by /proc")
def test_a_short_soak_finds_nothing(tmp_path: Path):
    found = run("soak.py", tmp_path / "x.json", "--minutes", "1")
    assert found["failures"] == [] and found["faults"]
    assert found["ended"].keys() == {"finetune", "distill", "cache", "cached", "compare", "two processes"}
    assert all(len(noted) > 3 for noted in found["memory (MB) and open files"].values())


def test_mutants_are_drawn_from_modules_and_tested_by_tests_that_exist():
    groups = runpy.run_path(str(ROOT / "benchmarks" / "mutants.py"))["GROUPS"]
    for patterns, tests in groups.values():
        assert all(list((ROOT / "src" / "uhkd").glob(pattern)) for pattern in patterns)
        assert all((ROOT / test).exists() for test in tests)


@pytest.mark.slow
def test_mutants_are_tried_and_continued(tmp_path: Path):
    pytest.importorskip("cosmic_ray", reason="a mutation check needs cosmic-ray")
    words = ["--groups", "spectral", "--count", "12", "--minutes"]
    assert run("mutants.py", tmp_path / "x.json", *words, "0")["mutants"] == []
    (mutant, *_) = run("mutants.py", tmp_path / "x.json", *words, "1")["mutants"]
    assert mutant["outcome"] in ("killed", "survived", "timeout") and mutant["change"][0] != mutant["change"][1]
