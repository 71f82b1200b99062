"""Folders from elsewhere: whatever lies in them, they are read or refused in words, and nothing in them is executed."""

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uhkd
from uhkd.errors import UhkdError
from uhkd.models import create, load_run
from uhkd.recipe import load_yaml
from uhkd.runs import Checkpoint, RunFolder
from uhkd.training import run_evaluation

FILES = [
    "recipe.yaml",
    "environment.json",
    "card.json",
    "result.json",
    "metrics.csv",
    "diagnostics.npz",
    "model.safetensors",
]
FILES += [f"checkpoints/step-4/{name}" for name in ("tensors.safetensors", "optimizer.pt", "facts.json", "SHA256SUMS")]
READERS: tuple[Callable[[RunFolder], Any], ...] = (
    RunFolder.read_recipe,
    RunFolder.read_environment,
    RunFolder.read_config,
    RunFolder.read_result,
    RunFolder.read_metrics,
    RunFolder.read_arrays,
    RunFolder.read_checkpoint,
    lambda run: load_run(run.path),
    lambda run: load_yaml(run.recipe),
)
often = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every file that is read again."""
    torch.manual_seed(0)
    network = create("uhkd/resnet10", num_classes=3, image_size=16, options={"channels": [4, 4, 8, 8]})
    run = RunFolder(tmp_path_factory.mktemp("hostile") / "run")
    run.begin({"data": "digits", "epochs": 3, "resume": False})
    assert network.config is not None
    run.write_model(network.config.to_json() | {"classes": ["a", "b", "c"]}, network.module.state_dict())
    run.write_json("result.json", {"verb": "finetune", "metrics": {"val_accuracy": 0.5}})
    run.write_metrics([{"step": 5, "loss": 0.1}, {"step": 10, "loss": 0.05, "late": 1.0}])
    run.write_arrays({"steps": np.arange(3), "spectra": np.ones((2, 3), np.float32)})
    run.write_checkpoint(Checkpoint(4, {"w": torch.ones(3)}, {"state": {}, "param_groups": []}, {"rows": []}))
    return run.path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def read_all(folder: Path) -> None:
    """Every reader either answers or refuses as a user's mistake is refused."""
    for reader in READERS:
        with contextlib.suppress(ValueError, OSError):
            reader(RunFolder(folder))


def test_a_whole_folder_is_read(whole: Path):
    for reader in READERS:
        assert reader(RunFolder(whole))


@pytest.mark.parametrize("name", FILES)
@often
@given(content=st.binary(max_size=300))
def test_any_bytes(copied: Path, name: str, content: bytes):
    (copied / name).write_bytes(content)
    read_all(copied)


@pytest.mark.parametrize("name", FILES)
@often
@given(data=st.data())
def test_a_changed_piece(whole: Path, copied: Path, name: str, data: st.DataObject):
    content = bytearray((whole / name).read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    (copied / name).write_bytes(content)
    read_all(copied)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", ["card.json", "result.json", "environment.json", "recipe.yaml"])
@often
@given(data=st.data())
def test_plain_data_of_any_shape(whole: Path, copied: Path, name: str, data: st.DataObject):
    before = yaml.safe_load((whole / name).read_text())
    changed = data.draw(plain)
    if data.draw(st.booleans()):
        changed = before | {data.draw(st.sampled_from(sorted(before))): changed}
    (copied / name).write_text(json.dumps(changed))
    read_all(copied)


class _Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize(
    "option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained", "cache_dir"]
)
def test_a_card_opens_no_other_file(copied: Path, tmp_path: Path, option: str):
    """timm would load what `checkpoint_path` names, by pickle in its older versions."""
    trap = tmp_path / "executed"
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(_Bomb(trap)))
    card = {
        "name": "timm/resnet18",
        "num_classes": 3,
        "image_size": [32, 32],
        "options": {option: str(tmp_path / "bomb.pth")},
    }
    (copied / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=f"timm/resnet18: the option {option} would read other files"):
        load_run(copied)
    assert not trap.exists()


def test_a_card_with_impossible_numbers_is_refused(copied: Path):
    card = json.loads((copied / "card.json").read_text())
    for change in ({"image_size": [10**9, 10**9]}, {"num_classes": -1}, {"mean": []}, {"std": [0.1, 0, 0.1]}):
        (copied / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(ValueError, match=r"card\.json has"):
            load_run(copied)


@pytest.mark.parametrize("key", ["data", "probe_data"])
@pytest.mark.parametrize("name", ["https://example.org/shards", "hfds/owner/name", "torch/cifar10", "//host/share"])
def test_a_run_does_not_lead_to_the_network(copied: Path, name: str, key: str, monkeypatch: pytest.MonkeyPatch):
    """Its data is opened if the user names it."""
    opened: list[Any] = []
    monkeypatch.setattr(run_evaluation, "open_data", lambda data, **_: opened.append(data.data) or 1 / 0)
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text()) | {key: name}
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    probe = "knn" if key == "probe_data" else "none"
    with pytest.raises(
        UhkdError, match=f"the data of .*run is {name}, which may be downloaded: name it with --data {name}"
    ):
        uhkd.evaluate(run=copied, device="cpu", probe=probe)
    with pytest.raises(ZeroDivisionError):
        uhkd.evaluate(run=copied, device="cpu", probe=probe, data=name)
    assert opened == [name]
