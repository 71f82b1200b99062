"""`uhkd models` and `uhkd doctor`, which never stop at a single trouble; and memory that runs out in any command."""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from uhkd.__main__ import main
from uhkd.commands.doctor import Check, DoctorReport
from uhkd.recipe.arguments import ModelsArguments

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


@pytest.mark.parametrize(
    ("line", "fails", "option"),
    [
        ("eval run", "evaluate.measure", "--batch-size"),
        ("predict run images", "evaluate.open_run", ""),
        ("export run", "export.open_run", "--images"),
        ("push run --repo me/student --dry-run", "push.open_run", "--images"),
        ("inspect --teacher t --student s", "inspect.prepare", "--image-size"),
        ("cache --teacher t --data digits --out cache", "cache.CacheWriter", "--batch-size"),
    ],
)
def test_memory_that_runs_out_gets_an_option_of_the_command(
    line: str,
    fails: str,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    module, _, name = fails.partition(".")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uhkd.cli.names.check_names", lambda recipe: None)
    monkeypatch.setattr(importlib.import_module(f"uhkd.commands.{module}"), name, fail)
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert "error: not enough memory" in said
    assert option in said


@pytest.fixture(scope="module")
def diagnosis() -> DoctorReport:
    return doctor.doctor()


def test_doctor_runs_every_check_and_shows_what_it_found(
    diagnosis: DoctorReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = {finding.topic: finding for finding in diagnosis.checks}
    assert list(found) == list(doctor.CHECKS)
    assert f"timm {importlib.metadata.version('timm')}" in found["packages"].found
    assert found["torch and torchvision"].found.endswith("are compatible")
    assert not [finding for finding in diagnosis.checks if "cannot tell" in finding.found]
    assert all(bool(finding.advice) == (finding.state != "ok") for finding in diagnosis.checks)
    assert diagnosis.environment["torch_version"] == torch.__version__
    assert sys.executable in diagnosis.environment["uhkd"]
    monkeypatch.setattr(doctor, "CHECKS", {topic: lambda own=own: own for topic, own in found.items()})
    monkeypatch.setattr(doctor, "environment", lambda: diagnosis.environment)
    code = main(["doctor"])
    text = capsys.readouterr().out
    assert all(topic in text for topic in found) and code == diagnosis.exit_code
    assert main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["result"] == json.loads(json.dumps(diagnosis.to_json())) and told["result"]["ok"] == (code == 0)


def test_doctor_goes_on_after_trouble(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken() -> Check:
        raise RuntimeError("driver too old\nand more lines")

    def broken_environment() -> None:
        raise OSError("no nvidia-smi")

    fault = Check("disk", "none", "fault", "make room")
    monkeypatch.setattr(doctor, "CHECKS", {"device": broken, "disk": lambda: fault})
    monkeypatch.setattr("torch.utils.collect_env.get_env_info", broken_environment)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "check failed: RuntimeError: driver too old" in said and "more lines" not in said
    assert "fault: disk: make room\n1 fault, 1 warning\n" in said


@pytest.mark.parametrize(
    ("finding", "state", "words"),
    [
        (doctor.without_gpu(None, False, ""), "ok", "built without CUDA"),
        (doctor.without_gpu(None, True, ""), "warning", "built for CUDA"),
        (
            doctor.without_gpu("13.2", True, "The NVIDIA driver on your system is too old"),
            "fault",
            "update the NVIDIA driver",
        ),
        (doctor.without_gpu("13.2", True, ""), "fault", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_doctor_tells_why_no_gpu_is_seen(finding: Check, state: str, words: str):
    assert finding.state == state and words in (finding.advice or finding.found)


def test_doctor_finds_a_gpu_on_which_no_kernel_runs(monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    gpu = SimpleNamespace(name="G", total_memory=2**34)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr("torch.ones", failing)
    found = doctor.device()
    assert found.state == "fault" and found.found == "G (16 GiB), but it cannot compute: no kernel image is available"
    assert "built for sm_90" in found.advice


@pytest.mark.parametrize(("used", "state"), [(3, "warning"), (2, "ok")])
def test_doctor_compares_threads_with_cores(used: int, state: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: used)
    monkeypatch.setattr("uhkd.data.loader.usable_cores", lambda: 2)
    found = doctor.threads()
    assert found.state == state and ("export OMP_NUM_THREADS=2" in found.advice) == (used > 2)


@pytest.mark.parametrize(
    ("check", "free", "state", "words"),
    [
        (doctor.disk, 1e8, "fault", "--out"),
        (doctor.disk, 1e9, "warning", "--out"),
        (doctor.disk, 1e12, "ok", ""),
        (doctor.shared_memory, 64 * 2**20, "warning", "--shm-size"),
        (doctor.temporary, 1e7, "warning", "TMPDIR"),
        (doctor.weights, 1e7, "warning", "HF_HOME"),
        (doctor.weights, 1e12, "ok", ""),
    ],
)
def test_doctor_finds_a_full_disk(
    check: Callable[[], Check], free: float, state: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    if check is doctor.shared_memory and not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))
    found = check()
    assert found.state == state and words in found.advice


def test_doctor_finds_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    assert doctor.folder("x", tmp_path / "not" / "there", 0, "advice").state == "ok"
    assert doctor.folder("x", tmp_path / "file", 0, "advice").state == "warning"
    assert doctor.folder("x", tmp_path / "file", 0, "advice", fault_below=0).state == "fault"


def test_doctor_finds_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch):
    lines = ["pillow>=1000", "numpy>=1", "no-such-package>=1", 'torchao>=1000; extra == "int8"']
    lines += ['pytest>=1000; extra == "dev"', 'no-such-extra>=1; extra == "hf"']
    pillow, torchao = map(importlib.metadata.version, ("pillow", "torchao"))
    found = {need.name: version for need, version in doctor.unmet([Requirement(line) for line in lines])}
    assert found == {"pillow": pillow, "no-such-package": None, "torchao": torchao}
    requires = importlib.metadata.requires
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines if name == "uhkd" else requires(name))
    finding = doctor.packages()
    assert finding.state == "fault" and finding.found.startswith(
        f"pillow {pillow}, required is >=1000; no-such-package "
    )
    assert finding.advice == 'pip install "pillow>=1000" "no-such-package>=1" "torchao>=1000"'
    lines[2] = "numpy>=1"
    assert doctor.packages().state == "warning"


def test_doctor_names_the_torch_of_a_torchvision(monkeypatch: pytest.MonkeyPatch):
    vision, needed = map(Requirement, doctor.fitting().split())
    assert str(vision) == f"torchvision=={importlib.metadata.version('torchvision')}"
    assert needed.name == "torch" and needed.specifier.contains(importlib.metadata.version("torch"))
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    assert doctor.fitting() == "torch torchvision"
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: 1 / 0)
    assert doctor.torchvision().state == "fault" and "--force-reinstall" in doctor.torchvision().advice
