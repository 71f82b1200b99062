"""The measuring scripts work and write what they promise; how fast anything is, they say and no test does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, out: Path, *words: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(out.read_text())


def test_reading_is_measured_for_each_number_of_images(tmp_path: Path):
    found = run("stored.py", tmp_path / "x.json", "--images", "300", "3000", "--rounds", "1", "--seconds", "0.1")
    assert list(found["images"]) == ["300", "3000"] and found["record_bytes"] == 6352
    assert all(row["records_per_second"] > 0 for rounds in found["images"].values() for row in rounds)
    assert "command" not in found["environment"]


def test_a_budget_that_is_spent_is_told_and_the_file_is_whole(tmp_path: Path):
    found = run("everything.py", tmp_path / "x.json", "--minutes", "0.01", "--sections", "copy", "options")
    assert found["sections"] == dict.fromkeys(("copy", "options"), "not run: no time left")


@pytest.mark.slow
def test_a_pair_is_stored_and_measured_live_and_stored(tmp_path: Path):
    words = ["--minutes", "9", "--rounds", "2", "--pairs", "resnet10--vit-micro-32", "--sections", "steps", "copy"]
    found = run("everything.py", tmp_path / "x.json", *words, "--methods", "scratch", "kd", "uhkd", "stored")[
        "sections"
    ]
    pair = found["steps: resnet10--vit-micro-32"]
    assert set(pair["methods"]) == {"scratch", "kd", "uhkd", "stored"} and not pair["missing"]
    assert pair["methods"]["stored"]["teacher"] == "stored signals" and "records written" in pair["writing"][0]
    assert all(len(facts["seconds"]) == 2 for facts in pair["methods"].values())
    assert found["copy"]["bytes_per_second"] > 0
