"""The gradient of each term, measured beside the training: the right norms, and a training that does not notice."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

import uhkd
from references.steps import SETTINGS, assemble
from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.methods import method_names
from uhkd.models import create
from uhkd.training import fit
from uhkd.training.gradient_norms import GradientNorms
from uhkd.training.learner import StudentWithLosses
from uhkd.training.side_step import SideStep
from uhkd.training.step import step_seed
from uhkd.training.teacher import Teacher

COMPARED = [name for name in method_names() if name != "scratch"]


def probe_of(
    learner: StudentWithLosses, teacher: Teacher | None, accumulate: int = 1
) -> tuple[GradientNorms, list[str]]:
    told: list[str] = []
    side_step = SideStep(learner, teacher, Fabric(accelerator="cpu", devices=1), 0, accumulate)
    return GradientNorms(side_step, told.append), told


def literal(learner: StudentWithLosses, teacher: Teacher, batch: Batch, weights: dict[str, float]) -> dict[str, float]:
    """Each term by a whole pass of its own, on a copy."""
    norms = {}
    for name, weight in weights.items():
        if not weight:
            continue
        own = copy.deepcopy(learner)
        torch.manual_seed(step_seed(0, 7, -1))
        terms = own(batch, teacher.outputs(batch, own.teacher_needs))
        (weight * terms[name]).backward()
        grads = [p.grad for p in own.student.parameters() if p.grad is not None]
        norms[name] = torch.cat([g.flatten() for g in grads]).norm().item()
    return norms


def everything(learner: StudentWithLosses) -> dict[str, Tensor]:
    state = {f"{name} (state)": value.clone() for name, value in learner.state_dict().items()}
    return state | {f"{name} (buffer)": value.clone() for name, value in learner.named_buffers()}


@pytest.mark.parametrize("method", COMPARED)
def test_norms_are_those_of_one_backward_pass_a_term_and_nothing_moves(method: str):
    learner, teacher, batch = assemble(method, SETTINGS.get(method, {}))
    weights = {name: 0.5 * weight for name, weight in learner.weights().items()}
    wanted = literal(learner, teacher, batch, weights)
    before = everything(learner)
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist()  # Python's own: the checker of types draws from it
    probe, told = probe_of(learner, teacher)
    assert probe(batch, 7, weights) == pytest.approx(wanted, rel=1e-4) and len(wanted) > 1 and told == []
    assert torch.equal(torch.get_rng_state(), drawn[0]) and np.random.get_state()[1].tolist() == drawn[1]
    after = everything(learner)
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []
    assert all(p.grad is None for p in learner.parameters()) and learner.training


def test_batch_statistics_of_the_student_are_put_back():
    """And a batch norm alone does move them, so that the test can fail."""
    student = create("uhkd/resnet10", num_classes=5, image_size=16, options={"channels": [8, 8, 8, 8]})
    learner = StudentWithLosses(student, nn.ModuleDict()).train()
    batch = Batch(torch.rand(4, 3, 16, 16), torch.eye(5)[:4], torch.arange(4), torch.arange(4))
    before = everything(learner)
    probe, _ = probe_of(learner, None)
    assert probe(batch, 0, {"ce": 1.0}) == {}  # nothing to compare
    assert probe(batch, 0, {"ce": 1.0, "kd.kl": 1.0}) == {}  # measured, and alone
    assert [k for k, v in everything(learner).items() if not torch.equal(v, before[k])] == []
    learner(batch, NetworkOutput())
    assert [k for k, v in everything(learner).items() if not torch.equal(v, before[k])] != []


@pytest.mark.parametrize(("images", "grad_accum_steps", "used"), [(100, 1, 32), (20, 1, 20), (40, 4, 10)])
def test_no_more_images_than_a_pass_of_a_step(images: int, grad_accum_steps: int, used: int, monkeypatch):
    learner, teacher, batch = assemble("kd", {})
    whole = Batch(*(None if f is None else torch.cat([f] * (images // 4)) for f in batch))
    seen: list[int] = []
    monkeypatch.setattr(learner.student, "forward", lambda image, *_: seen.append(len(image)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probe_of(learner, teacher, grad_accum_steps)[0](whole, 0, learner.weights())
    assert seen == [used]


def test_a_method_whose_terms_cannot_be_told_apart_is_left_out_and_says_so_once():
    learner, teacher, batch = assemble("kd", {})

    class Once(torch.autograd.Function):
        """A backward pass that works a single time."""

        left = 1

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            if not Once.left:
                raise RuntimeError("a second time\nis not possible")
            Once.left -= 1
            return grads[0]

    head = learner.student.register_forward_hook(lambda _, __, said: said._replace(logits=Once.apply(said.logits)))
    probe, told = probe_of(learner, teacher)
    assert probe(batch, 0, learner.weights()) == {} == probe(batch, 1, learner.weights())
    assert told == [
        "warning: the gradient of each term cannot be measured, the training continues without: a second time"
    ]
    head.remove()


# whole trainings

TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 40,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 2,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "allow_weak_teacher": True,
}


@pytest.fixture(scope="module", autouse=True)
def _without_pictures():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        yield


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("uhkd", {"student": "uhkd/resnet10", "student_options": {"channels": [8, 8, 8, 8]}, "grad_accum_steps": 2}),
        ("crd", {"student": "uhkd/vit_micro", "ema_decay": 0.9, "mixup": 0.4, "settings": {"negatives": 16}}),
        pytest.param("rsd", {"student": "uhkd/mixer_micro", "precision": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_a_training_that_is_measured_is_the_training_that_is_not(
    method: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"student_options": {"embed_dim": 24, "depth": 3, "num_heads": 2, "proj_drop_rate": 0.2}}
    words = TINY | (options if changes["student"] == "uhkd/vit_micro" else {}) | changes | {"method": method}
    torch.manual_seed(0)
    teacher = create("uhkd/resnet10", num_classes=10, image_size=16, options={"channels": [8, 8, 8, 8]})
    measured = uhkd.distill(teacher=teacher, **words, out=str(tmp_path / "measured")).run
    monkeypatch.setattr(GradientNorms, "__call__", lambda *_: {})
    plain = uhkd.distill(teacher=teacher, **words, out=str(tmp_path / "plain")).run
    ours, theirs = load_file(measured.weights), load_file(plain.weights)
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    times = {"seconds", "images_per_second", "data_wait"}
    for row, other in zip(measured.read_metrics(), plain.read_metrics(), strict=True):
        norms = {k for k in row if k.startswith("grad_")}
        assert len(norms) > 1 and all(0 < row[k] < float("inf") for k in norms)
        assert {k: v for k, v in row.items() if k not in norms | times} == {
            k: v for k, v in other.items() if k not in times
        }


def test_one_term_alone_is_not_measured(tmp_path: Path):
    run = uhkd.finetune(
        model="uhkd/vit_micro",
        options={"embed_dim": 24, "depth": 3, "num_heads": 2},
        **{k: v for k, v in TINY.items() if k != "allow_weak_teacher"},
        out=str(tmp_path / "run"),
    ).run
    assert not [k for row in run.read_metrics() for k in row if k.startswith("grad_")]
