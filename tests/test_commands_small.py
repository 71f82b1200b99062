"""`uhkd models` and `uhkd doctor`: lists and reports that never stop at a single trouble."""

import importlib
import importlib.metadata

import pytest

from uhkd.__main__ import main
from uhkd.arguments import ModelsArguments

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


def test_doctor_reports(capsys: pytest.CaptureFixture[str]):
    findings = doctor.doctor()
    assert f"torch {importlib.metadata.version('torch')}" in findings["packages"]
    assert findings["torch and torchvision"] == "fit together"
    assert "in fp32" in findings["bf16"]
    assert not [finding for finding in findings.values() if "cannot tell" in finding or "MISSING" in finding]
    text = capsys.readouterr().out
    assert all(topic in text for topic in findings)


def test_doctor_goes_on_after_trouble(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken() -> str:
        raise RuntimeError("driver too old\nand more lines")

    monkeypatch.setitem(doctor._QUESTIONS, "device", broken)
    assert doctor.doctor()["device"] == "cannot tell: RuntimeError: driver too old"
    assert "driver too old" in capsys.readouterr().out
