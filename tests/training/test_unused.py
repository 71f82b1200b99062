"""Parameters that no loss term uses, or only some steps do, by one process and by two."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import uhkd
from references import partial_use
from references.nodes import ENVIRON, TORCHRUN
from uhkd.methods import method_names
from uhkd.models import wrap_module
from uhkd.training import trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    better = {"train_limit": 600, "epochs": 6, "lr": 0.01}
    words = (
        partial_use.TINY
        | {"model": "uhkd/vit_micro", "options": {"embed_dim": 24, "depth": 3, "num_heads": 2}}
        | better
    )
    del words["allow_weak_teacher"]
    return str(uhkd.finetune(**words, out=tmp_path_factory.mktemp("teacher") / "run").run.path)


def by_two(teacher: str, out: Path, *pairs: str) -> None:
    command = [*TORCHRUN, "--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0", str(partial_use.__file__)]
    done = subprocess.run(
        [*command, teacher, str(out), *pairs], env=ENVIRON, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("student", ["spare", "auxiliary"])
def test_parameters_without_gradient_are_frozen_and_listed(
    teacher: str, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = partial_use.train(teacher, tmp_path, student, "uhkd", weight_decay=0.5)
    found = json.loads(result.run.result.read_text())
    assert set(found["unused_parameters"]) == partial_use.NEVER
    assert (
        "5 parameters (312 numbers) without gradient, because no loss term depends on them, are frozen: mask_token"
        in (capsys.readouterr().err)
    )
    torch.manual_seed(0)
    first = partial_use.STUDENTS[student]().state_dict()
    trained = load_file(result.run.weights)
    changed = {name for name, value in trained.items() if not torch.equal(value, first[name])}
    assert changed == first.keys() - partial_use.NEVER
    assert all(parameter.requires_grad for parameter in result.student.module.parameters())


def test_checkpointed_activations_are_trained_as_they_are(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Reentrant checkpointing refuses gradients with respect to given parameters."""
    result = partial_use.train(teacher, tmp_path, "checkpointed", "kd")
    assert "whether all parameters receive a gradient cannot be determined: " in capsys.readouterr().err
    assert "unused_parameters" not in result.run.read_result() and result.metrics["step"] == 6


def test_without_labels_they_are_listed_too(teacher: str, tmp_path: Path):
    result = partial_use.train(teacher, tmp_path, "spare", "uhkd", unlabelled=True, weights={"inter": 0, "intra": 0})
    listed = result.run.read_result()["unused_parameters"]
    assert set(listed) >= partial_use.NEVER and len(listed) == len(set(listed))


def test_an_interruption_leaves_the_module_as_it_was(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trained on with the same module, the run lists the same parameters."""
    module = partial_use.Spare()
    words = partial_use.TINY | {"teacher": teacher, "method": "kd", "student": module, "out": tmp_path / "run"}
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_after_step", lambda *_: os.kill(os.getpid(), signal.SIGINT) or 1 / 0)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            uhkd.distill(**words)
    assert all(parameter.requires_grad for parameter in module.parameters())
    result = uhkd.distill(**words, resume=True).run.read_result()
    assert set(result["unused_parameters"]) == partial_use.NEVER


def test_a_block_that_some_steps_skip_stays_trainable(teacher: str, tmp_path: Path):
    result = partial_use.train(teacher, tmp_path, "skipping", "kd")
    assert set(json.loads(result.run.result.read_text())["unused_parameters"]) == partial_use.NEVER


def test_a_skipped_layer_with_a_matched_map_is_named():
    network = wrap_module(partial_use.Skipping(), num_classes=10, image_size=16, levels=["stem", "middle.branch"])
    with pytest.raises(uhkd.UhkdError, match=r"layer middle.branch of Skipping did not run in this forward pass"):
        [network.train()(torch.rand(2, 3, 16, 16), frozenset({"maps"})) for _ in range(99)]  # each skips it by chance


def test_two_processes_train_what_one_trains(teacher: str, tmp_path: Path):
    pairs = ["spare:uhkd", "auxiliary:kd", "skipping:kd", "spare:scratch"]
    by_two(teacher, tmp_path / "two", *pairs)
    for pair in pairs:
        student, method = pair.split(":")
        one = partial_use.train(teacher, tmp_path / "one", student, method).run
        result = json.loads((tmp_path / "two" / one.path.name / "result.json").read_text())
        assert set(result["unused_parameters"]) == partial_use.NEVER, pair
        if student == "skipping":  # each process skips by its own chance
            continue
        for name, value in load_file(tmp_path / "two" / one.path.name / "model.safetensors").items():
            torch.testing.assert_close(value, load_file(one.weights)[name], rtol=1e-2, atol=1e-3, msg=f"{pair} {name}")


@pytest.mark.slow
def test_every_method_trains_by_two_processes_with_parameters_that_it_does_not_use(teacher: str, tmp_path: Path):
    pairs = [f"{student}:{method}" for method in method_names() for student in ("spare", "skipping")]
    by_two(teacher, tmp_path, *pairs)
    for pair in pairs:
        result = json.loads((tmp_path / pair.replace(":", "-") / "result.json").read_text())
        assert set(result["unused_parameters"]) >= partial_use.NEVER, pair
