"""Why UHKD: the probes find what is there, the changes are fixed, and the whole goes from run folders to a page."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import uhkd
from uhkd.runs import RunFolder
from uhkd.training import fit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found() -> Any:
    """Modules of results/ by name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "results"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def probes(found: Any) -> ModuleType:
    return found("why_probes")


def test_bands_are_circles_of_frequencies(probes: ModuleType):
    from uhkd.spectral import radial_frequencies

    places = probes.bands(radial_frequencies((5, 5), "pairs").numpy())
    assert {name: len(at) for name, at in places.items()} == {"DC": 1, "1": 4, "√2": 4, "2": 4, "√5": 8, "√8": 4}
    assert sorted(i for at in places.values() for i in at) == list(range(25))


def test_ridge_is_the_literal_solution(probes: ModuleType):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator).double() + 3
    labels = torch.arange(40) % 3
    weight, bias = probes.ridge(x, labels, 3, [0.5])[0]
    # least squares of rows that hold the penalty, the column of ones unpenalised
    variance = x.var(0, correction=0).mean()
    penalty = torch.cat([(40 * 0.5 * variance).sqrt() * torch.eye(6).double(), torch.zeros(6, 1).double()], 1)
    a = torch.cat([torch.cat([x, torch.ones(40, 1).double()], 1), penalty])
    b = torch.cat([torch.eye(3).double()[labels], torch.zeros(6, 3).double()])
    literal = torch.linalg.lstsq(a, b).solution
    torch.testing.assert_close(torch.cat([weight, bias[None]]), literal)


def test_the_band_that_holds_the_label_is_found_and_another_is_at_chance(
    probes: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 4
    x = torch.randn(1000, 8, 9, generator=generator)  # channels and coefficients
    x[:, 1, 3] += 4.0 * labels  # frequency 1 alone knows
    x[:, 5, 1] -= 4.0 * (labels == 2)
    places = probes.bands(np.array([0, 1, 1, 1, 2**0.5, 2**0.5, 1, 2**0.5, 2**0.5]))
    fit, in_memory = x[:800], x[800:]

    def accuracy(at: list[int]) -> float:
        return probes.probe(fit[..., at].flatten(1), labels[:800], in_memory[..., at].flatten(1), labels[800:], 4)

    told = {name: accuracy(at) for name, at in places.items()}
    assert told["1"] > 0.75 and abs(told["DC"] - 0.25) < 0.1 and abs(told["√2"] - 0.25) < 0.1
    assert accuracy(list(range(9))) > 0.7
    monkeypatch.setattr(probes, "WIDEST", 40)
    assert accuracy(list(range(9))) == accuracy(list(range(9))) > 0.4, "projected to fewer numbers, the same each time"


def test_changes_belong_to_the_image_and_repeat(probes: ModuleType):
    images, index = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    for name, change in probes.CHANGES.items():
        whole = change(images, index)
        assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1, name
        torch.testing.assert_close(whole, torch.cat([change(images[k : k + 1], index[k : k + 1]) for k in range(6)]))
        assert torch.equal(whole, change(images, index))
        assert torch.equal(whole, images) == (name == "clean")
    moved = probes.shift(images, index, 2)
    assert torch.equal(moved[0, :, :, 2:], images[0, :, :, :-2]) and torch.equal(moved[0, :, :, 1], images[0, :, :, 1])
    assert torch.equal(moved[3, :, :-2], images[3, :, 2:])
    assert 0.04 < (probes.noise(torch.full_like(images, 0.5), index, 0.05) - 0.5).std() < 0.06
    low = probes.smooth(images, 3)
    torch.testing.assert_close(probes.smooth(low, 3), low)
    torch.testing.assert_close(low.mean((2, 3)), images.mean((2, 3)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A tiny teacher, one seed of KD and two of UHKD."""
    root = tmp_path_factory.mktemp("why")
    tiny: dict[str, Any] = {"data": "digits", "train_limit": 100, "image_size": 16, "batch_size": 20, "epochs": 2}
    tiny |= {"device": "cpu", "precision": "fp32"}
    student = {"student": "uhkd/vit_micro", "student_options": {"embed_dim": 24, "depth": 3, "num_heads": 2}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        options = {"channels": [8, 12, 16, 24]}
        uhkd.finetune(model="uhkd/resnet10", options=options, out=root / "teacher", **tiny)
        for method, seed in (("kd", 0), ("uhkd", 0), ("uhkd", 1)):
            words: dict[str, Any] = tiny | student | {"teacher": root / "teacher", "allow_weak_teacher": True}
            uhkd.distill(method=method, seed=seed, out=root / f"{method}-{seed}", **words)
    return {
        "teacher": [f"{root}/teacher"],
        "kd": [f"{root}/kd-0"],
        "uhkd": [f"{root}/uhkd-0", f"{root}/uhkd-1"],
    }


def command(runs: dict[str, list[str]], out: Path) -> list[str]:
    words = ["--data", "digits", "--pair", "tiny", "--images", "100", "--out", str(out), "--figures", str(out)]
    return words + [word for name, own in runs.items() for word in (f"--{name}", *own)]


@pytest.mark.slow
def test_run_folders_become_a_file_figures_and_tables(found: Any, runs: dict[str, list[str]], tmp_path: Path):
    found("why").main(command(runs, tmp_path))
    text = (tmp_path / "tiny.json").read_text()
    told = json.loads(text)
    assert str(Path(runs["kd"][0]).parent) not in text and "command" not in told["environment"]
    assert [run["seed"] for run in told["runs"]["uhkd"]] == [0, 1] and told["runs"]["kd"][0]["train_images"] == 100
    assert told["matched"] == [[0, 1], [1, 2], [2, 3]] and told["data"]["fitting_images"] == 100
    for side, levels in {"teacher": 4, "kd": 3, "uhkd": 3}.items():
        assert len(told["bands"][side]) == levels and all("all" in level for level in told["bands"][side])
    assert list(told["bands"]["teacher"][3]) == ["DC", "all"]  # 2 x 2 cells hold their mean alone
    assert np.shape(told["cka"]["kd"]["end"]["mean"]) == (3, 4) and told["cka"]["kd"]["end"]["sd"] is None
    assert len(told["spectral_error"]["steps"]) == 2 and told["spectral_error"]["levels"][0]["bands"] == [
        "DC",
        "1",
        "√2",
    ]
    uhkd_clean = told["robustness"]["uhkd"]["accuracy"]["clean"]
    assert uhkd_clean["mean"] == pytest.approx(told["calibration"]["uhkd"]["accuracy"]["mean"], abs=1e-4)
    assert len(uhkd_clean["runs"]) == 2 and told["robustness"]["kd"]["kept"]["clean"]["mean"] == 1
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert set(sizes) == {f"why-tiny-{name}.png" for name in ("cka", "bands", "error", "robustness")}
    assert max(sizes.values()) < 80_000
    page = found("render_why").why({"tiny.json": told})
    assert "±" in page and "| 1 with teacher's 2 |" in page and "results/why/tiny.json" in page
    assert "not recorded" not in page


def test_what_is_not_there_is_said(found: Any):
    assert found("render_why").why({}) == "not yet run"


@pytest.mark.slow
def test_runs_that_do_not_belong_together_are_refused(found: Any, runs: dict[str, list[str]], tmp_path: Path):
    with pytest.raises(ValueError, match="not seeds of one recipe"):
        found("why").main(command(runs | {"uhkd": [*runs["uhkd"], *runs["kd"]]}, tmp_path))
    with pytest.raises(ValueError, match="another teacher"):
        found("why").main(command(runs | {"teacher": runs["kd"]}, tmp_path))


@pytest.mark.slow
def test_a_kept_teacher_has_no_arrays_and_serves_as_well(found: Any, runs: dict[str, list[str]], tmp_path: Path):
    kept = RunFolder(shutil.copytree(runs["teacher"][0], tmp_path / "kept"))
    kept.diagnostics.unlink()
    students = {side: [RunFolder(path) for path in runs[side]] for side in ("kd", "uhkd")}
    found("why").check_data(kept, students, uhkd.open_data("digits"))
    np.savez(kept.diagnostics, val_label=np.zeros(3))
    with pytest.raises(ValueError, match="held other images"):
        found("why").check_data(kept, students, uhkd.open_data("digits"))
