"""`uhkd models` and `uhkd doctor`: lists and reports that never stop at a single trouble."""

import importlib
import importlib.metadata
import json
import os
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from uhkd.__main__ import main
from uhkd.arguments import ModelsArguments
from uhkd.commands.diagnosing import Diagnosis, Finding, machine, places, software

# the package exports functions of the same names as these modules
doctor = importlib.import_module("uhkd.commands.doctor")
models = importlib.import_module("uhkd.commands.models")


def test_models_counts_parameters_without_building_more_than_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    built = []
    count = models.count_parameters
    monkeypatch.setattr(models, "count_parameters", lambda name: (built.append(name), count(name))[1])
    rows = models.models(ModelsArguments(pattern="timm/resnet*", limit=2))
    assert len(rows) == 2
    assert len(built) <= 3  # one more, to know that there are more
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("network")
    assert [line.split()[0] for line in lines[1:]] == [row.name for row in rows]
    assert "raise --limit (2)" in said.err


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_known_parameter_counts(name: str):
    assert models.count_parameters(name) == 11_689_512


def test_parameters_are_told_where_the_meta_device_fails():
    assert models.count_parameters("torchvision/regnet_y_400mf") == 4_344_144


def test_models_keeps_to_a_size(capsys: pytest.CaptureFixture[str]):
    rows = models.models(ModelsArguments(pattern="torchvision/mnasnet*", max_params=3.0))
    assert [row.name for row in rows] == ["torchvision/mnasnet0_5"]
    assert models.models(ModelsArguments(pattern="torchvision/mnasnet*", max_params=0.1)) == []
    assert "none of 4 names has at most 0.1 M parameters" in capsys.readouterr().err


def test_models_measures_time():
    (row,) = models.models(ModelsArguments(pattern="uhkd/resnet10", measured=True))
    assert row.milliseconds is not None
    assert row.milliseconds > 0


def test_models_without_a_match(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "no-such-network"]) == 2
    assert "no network matches 'no-such-network'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return doctor.doctor()


def test_doctor_looks_at_everything_and_says_what_it_found(
    diagnosis: Diagnosis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = {finding.topic: finding for finding in diagnosis.findings}
    assert list(found) == list(doctor._QUESTIONS)
    assert f"torch {importlib.metadata.version('torch')}" in found["packages"].found
    assert found["torch and torchvision"].found == "fit together"
    assert "in fp32" in found["bf16"].found
    assert not [finding for finding in diagnosis.findings if "cannot tell" in finding.found]
    assert all(bool(finding.advice) == (finding.state != "ok") for finding in diagnosis.findings)
    monkeypatch.setattr(doctor, "_QUESTIONS", {topic: lambda own=own: own for topic, own in found.items()})
    code = main(["doctor"])
    text = capsys.readouterr().out
    assert all(topic in text for topic in found) and code == diagnosis.exit_code
    assert main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["result"] == json.loads(json.dumps(diagnosis.as_json())) and told["result"]["ok"] == (code == 0)


def test_doctor_goes_on_after_trouble(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken() -> Finding:
        raise RuntimeError("driver too old\nand more lines")

    fault = Finding("disk", "none", "fault", "make room")
    monkeypatch.setattr(doctor, "_QUESTIONS", {"device": broken, "disk": lambda: fault})
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "cannot tell: RuntimeError: driver too old" in said and "more lines" not in said
    assert "fault: disk: make room\n1 fault, 1 warning\n" in said


@pytest.mark.parametrize(
    ("finding", "state", "words"),
    [
        (machine.without_gpu(None, False, ""), "ok", "built without CUDA"),
        (machine.without_gpu(None, True, ""), "warning", "built for CUDA"),
        (
            machine.without_gpu("13.2", True, "The NVIDIA driver on your system is too old"),
            "fault",
            "update the NVIDIA driver",
        ),
        (machine.without_gpu("13.2", True, ""), "fault", "CUDA_VISIBLE_DEVICES"),
        (machine.judge_threads(8, 2, {"OMP_NUM_THREADS": "8"}), "warning", "export OMP_NUM_THREADS=2"),
        (machine.judge_threads(2, 2, {}), "ok", ""),
        (machine.judge_memory(2**34, 2**30), "warning", "--batch-size"),
        (machine.judge_memory(2**34, None), "ok", ""),
        (machine.judge_encoding({"terminal": "ascii", "files": "UTF-8"}), "warning", "PYTHONUTF8=1"),
        (machine.judge_encoding({"terminal": "utf-8", "files": "UTF-8"}), "ok", ""),
        (machine.judge_clock(0.0, 1.7e9), "warning", "set it"),
        (machine.judge_clock(1.7e9, 1.7e9), "ok", ""),
        (places.judge_place("disk", Path("x"), "Permission denied", 10**12), "fault", "--out"),
        (places.judge_place("disk", Path("x"), None, 10**8), "fault", "make room"),
        (places.judge_place("disk", Path("x"), None, 10**9), "warning", "cache"),
        (places.judge_place("disk", Path("x"), None, 10**12), "ok", ""),
        (places.judge_shared(64 * 2**20), "warning", "--shm-size"),
        (places.judge_shared(2**33), "ok", ""),
    ],
)
def test_usual_faults_of_a_set_up(finding: Finding, state: str, words: str):
    assert finding.state == state and words in (finding.advice or finding.found)


def test_doctor_finds_packages_that_are_missing_or_too_old():
    wanted = [Requirement(line) for line in ("pillow>=1000", "numpy>=1", "no-such-package>=1")]
    found = {need.name: version for need, version in software.unmet(wanted)}
    assert found == {"pillow": importlib.metadata.version("pillow"), "no-such-package": None}


def test_doctor_finds_extras_by_their_packages(monkeypatch: pytest.MonkeyPatch):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(software.EXTRAS) == set(project["optional-dependencies"]) - {"dev", "docs"}
    # packages that were installed beside an older version of uhkd, whose metadata knows none of these extras
    monkeypatch.setattr(software.metadata, "requires", lambda name: ["numpy>=1"])
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None if name == "wandb" else "there")
    others = ", ".join(sorted(set(software.EXTRAS) - {"wandb"}))
    assert software.extras().found == f'{others} installed; not installed: wandb (pip install "uhkd[NAME]")'
    monkeypatch.setattr(software.metadata, "requires", lambda name: ['torchao>=1000; extra == "int8"'])
    monkeypatch.setattr(software, "installed", lambda name: "0.1")
    assert software.extras().state == "warning" and 'pip install -U "uhkd[int8]"' in software.extras().advice


def test_doctor_names_the_torch_of_a_torchvision(monkeypatch: pytest.MonkeyPatch):
    vision, torch = map(Requirement, software.fitting().split())
    assert str(vision) == f"torchvision=={importlib.metadata.version('torchvision')}"
    assert torch.name == "torch" and torch.specifier.contains(importlib.metadata.version("torch"))
    monkeypatch.setattr(software, "installed", lambda _: None)
    assert software.fitting() == "torch torchvision"
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: 1 / 0)
    assert software.pair().state == "fault" and "--force-reinstall" in software.pair().advice


def test_doctor_finds_several_programs_of_the_name(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "uhkd").write_text("")
        (tmp_path / folder / "uhkd").chmod(0o755)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    path = os.pathsep.join(str(tmp_path / folder) for folder in ("a", "b", "c", "missing"))
    assert len(software.programs(path)) == 2


def test_doctor_hides_the_password_of_a_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:8080")
    monkeypatch.delenv("https_proxy", raising=False)
    said = machine.network().found
    assert "proxy:8080" in said and "secret" not in said


def test_doctor_sees_that_a_folder_cannot_be_written(tmp_path: Path):
    assert places.why_not(tmp_path / "not" / "there") is None
    (tmp_path / "file").touch()
    assert places.why_not(tmp_path / "file") is not None
