"""Weights as training tools store them: several copies, wrappers, counters, other sizes, files that need a conversion."""

import argparse
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from uhkd.models import create, load_state

NAME = {"name": "uhkd/resnet10", "num_classes": 5}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def plain() -> State:
    torch.manual_seed(0)
    return create(**NAME).module.state_dict()


@pytest.fixture(scope="module")
def average(plain: State) -> State:
    return {name: tensor + 1 for name, tensor in plain.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def counters(state: State) -> State:
    """What thop leaves in a network."""
    names = {name.rpartition(".")[0] for name in state}
    return {f"{name}.total_ops": torch.zeros(1) for name in names} | {"total_params": torch.zeros(1)}


def loaded(file: Path, content: Any, **words: Any) -> Any:
    torch.save(content, file)
    return create(**NAME | words, start=file)


def assert_loaded(network: Any, state: State) -> None:
    own = network.module.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


# what a tool stores, the key of its average, and what is said of the weights themselves
FORMS = {
    "timm": (
        lambda a, b: {"state_dict": a, "state_dict_ema": b, "epoch": 3},
        "state_dict_ema",
        "others there: state_dict_ema",
    ),
    "deit": (lambda a, b: {"model": under("module.", a), "model_ema": b}, "model_ema", "others there: model_ema"),
    "lightning": (
        lambda a, b: {
            "state_dict": under("model.", a) | {"train_acc.tp": torch.zeros(5), "criterion.weight": torch.ones(5)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3, 3)}}, "param_groups": []}],
            "callbacks": {"EMA{'decay': 0.99}": {"n": 3}, "EMA": {"weights": under("model.", b)}},
        },
        "callbacks.EMA.weights",
        "removed the prefix 'model.'; left out 2 other tensors (train_acc.tp, criterion.weight)",
    ),
    "lightning, compiled": (
        lambda a, b: {"state_dict": under("net._orig_mod.", a), "ema": under("net.", b)},
        "ema",
        "removed the prefix 'net.'",
    ),
    "dino": (
        lambda a, b: {"student": under("module.backbone.", a), "teacher": under("backbone.", b)},
        "teacher",
        "loaded the weights under 'student'; others there: teacher",
    ),
    "moco": (
        lambda a, b: {
            "state_dict": under("module.encoder_q.", a) | under("module.encoder_k.", b) | {"queue": torch.ones(2)}
        },
        "module.encoder_k",
        "also under module.encoder_k (--weights-key",
    ),
    "thop": (
        lambda a, b: {"model": under("module.", a | counters(a)) | {"total_ops": torch.ones(1)}, "ema": b},
        "ema",
        "without weights (total_ops, total_params)",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_is_chosen_and_reported(tmp_path: Path, plain: State, average: State, form: str) -> None:
    make, key, said = FORMS[form]
    network = loaded(tmp_path / "w.pth", make(plain, average))
    assert_loaded(network, plain)
    assert any(said in note for note in network.notes), network.notes
    assert_loaded(loaded(tmp_path / "w.pth", make(plain, average), weights_key=key), average)


def test_the_only_copy_is_loaded_and_reported(tmp_path: Path, average: State) -> None:
    network = loaded(tmp_path / "w.pth", {"ema": {"module": average, "updates": 3}, "best": torch.tensor(0.9)})
    assert_loaded(network, average)
    assert network.notes == [f"'{tmp_path / 'w.pth'}': loaded the weights under 'ema.module'; there are no others"]


def test_averaged_parallel_and_compiled_models(tmp_path: Path, plain: State) -> None:
    model = create(**NAME).module
    model.load_state_dict(plain)
    for prefix, content in (("n_averaged", AveragedModel(model).state_dict()), ("", under("_orig_mod.module.", plain))):
        network = loaded(tmp_path / "w.pth", content)
        assert_loaded(network, plain)
        assert all(prefix in note for note in network.notes)
    save_file(under("module.", plain), tmp_path / "w.pth")  # whatever its ending
    assert load_state(tmp_path / "w.pth").keys() == plain.keys()


def test_missing_counters_are_counted_and_missing_statistics_refused(tmp_path: Path, plain: State) -> None:
    old = {name: tensor for name, tensor in plain.items() if "tracked" not in name}
    network = loaded(tmp_path / "w.pth", old)
    assert_loaded(network, old)
    assert network.notes == [f"'{tmp_path / 'w.pth'}': ignored 13 tensors without weights (num_batches_tracked)"]
    with pytest.raises(ValueError, match=r"do not fit ResNet: 1 missing \(bn1.running_mean\)$"):
        loaded(tmp_path / "w.pth", {name: tensor for name, tensor in plain.items() if name != "bn1.running_mean"})


@pytest.mark.parametrize("classes", [5, None])
def test_backbone_and_head_apart(tmp_path: Path, plain: State, classes: int | None) -> None:
    parts = {("head." if name.startswith("fc.") else "backbone.") + name: tensor for name, tensor in plain.items()}
    network = loaded(tmp_path / "w.pth", {"state_dict": parts, "meta": {}}, num_classes=classes)
    assert_loaded(network, plain)


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 16}


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("uhkd/vit_micro", 16, {}),
        ("timm/test_vit", (64, 96), {}),
        ("transformers/vit", 96, SMALL),
    ],
)
def test_position_embeddings_are_resampled(tmp_path: Path, name: str, size: Any, options: dict[str, Any]) -> None:
    """A linear ramp stays a ramp, and the class token what it was."""
    words = {"name": name, "num_classes": 3, "options": options}
    source = create(**words, image_size=64 if "uhkd" not in name else 32)
    (place,) = (n for n in source.module.state_dict() if "pos_embed" in n or "position_embeddings" in n)
    state = source.module.state_dict()
    side = round((state[place].shape[1] - 1) ** 0.5)
    state[place][0, 1:] = torch.arange(float(side)).repeat_interleave(side)[:, None]
    save_file(state, tmp_path / "w.safetensors")
    network = create(**words, image_size=size, start=tmp_path / "w.safetensors")
    found = network.module.state_dict()[place]
    assert found.shape != state[place].shape and torch.equal(found[:, 0], state[place][:, 0])
    rows = found[0, 1:, 0]
    assert bool((rows.diff() > -0.05).all()) and abs(float(rows.mean()) - (side - 1) / 2) < 0.05
    assert any(f"resampled to this size: {place}" in note for note in network.notes), network.notes


def trained(state: State) -> dict[str, Any]:
    """What a training script saves: the module itself, its options, a number of NumPy."""
    module = nn.Sequential(nn.Linear(2, 2))
    module.load_state_dict(state)
    return {"model": module, "args": argparse.Namespace(lr=0.1), "acc": np.float64(0.5)}


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_the_command_in_the_refusal_works(tmp_path: Path, kind: str) -> None:
    state = {"0.weight": torch.rand(2, 2), "0.bias": torch.rand(2)}
    file = tmp_path / "my run.pth"
    if kind == "torch":
        torch.save(trained(state), file)
    else:
        file.write_bytes(pickle.dumps({"model": {name: tensor.numpy() for name, tensor in state.items()}}))
    with pytest.raises(ValueError, match="if you trust the file, save its tensors alone") as caught:
        load_state(file)
    command = shlex.split(str(caught.value).partition("tensors alone: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    read = load_state(tmp_path / "my run-tensors.pth")
    assert read.keys() == state.keys() and all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_the_key_is_an_option_of_student_and_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: State, average: State
) -> None:
    """A dry run of distillation with the average of both."""
    from uhkd.recipe import DistillRecipe, build
    from uhkd.training.setup import prepare

    torch.save({"model": plain, "model_ema": average}, tmp_path / "w.pth")
    words = {"data": "digits", "train_limit": 40, "method": "kd", "device": "cpu", "workers": 0, "image_size": 32}
    words |= {"teacher": "uhkd/resnet10", "student": "uhkd/resnet10", "teacher_options": {"num_classes": 5}}
    words |= {f"{who}_start": str(tmp_path / "w.pth") for who in ("student", "teacher")}
    words |= {f"{who}_weights_key": "model_ema" for who in ("student", "teacher")}
    setup = prepare(build(DistillRecipe, words | {"out": str(tmp_path / "run")}), dry_run=True)
    body = {name: tensor for name, tensor in average.items() if not name.startswith("fc.")}
    assert_loaded(setup.learner.student, body)
    assert_loaded(setup.networks[0], average)
