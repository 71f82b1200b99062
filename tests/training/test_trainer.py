"""The training loop: schedule, loss, sealed teacher, calibration, probe, and resuming to the bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.optim.lamb import Lamb
from torch import Tensor, nn

import uhkd
from references.runs import TIMES, assert_equal_runs
from references.views import plain_view
from uhkd.data import Augmentation, Batch, open_data, train_loader
from uhkd.evaluation.probe import fit_linear_probe
from uhkd.features import FeatureExtractor, NetworkOutput
from uhkd.methods import DistillationLoss, Requirements
from uhkd.models import load_run, load_state, wrap_module
from uhkd.recipe import TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.spectral import SpectralTarget, match_levels
from uhkd.training import StudentWithLosses, Teacher, at_chance, calibrate, fit, lr_factor, trainer, weighted_sum
from uhkd.training import load_teacher as teaching
from uhkd.training import step as stepping
from uhkd.training.optimizer import make_optimizer
from uhkd.training.progress import ProgressBar
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.schedule import weights_factor
from uhkd.training.step import split, step_seed

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "log_every": 2,
}
# dropout and stochastic depth: what a run draws at random must not depend on its past
STUDENT = {"embed_dim": 24, "depth": 3, "num_heads": 2, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}
PLAIN = STUDENT | {"drop_path_rate": 0.0, "proj_drop_rate": 0.0}


@pytest.fixture(scope="module", autouse=True)
def _without_pictures() -> Iterator[None]:
    """They take longer than these trainings."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "teacher"
    words = TINY | {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "crop": "none", "seed": 3}
    uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 24]}, out=out, **words)
    return out


def words(teacher: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A distillation of 3 epochs of 5 steps."""
    return TINY | {
        "teacher": str(teacher),
        "student": "uhkd/vit_micro",
        "student_options": STUDENT,
        "method": "uhkd",
        "mixup": 0.4,
        "cutmix": 0.5,
        "epochs": 3,
        "allow_weak_teacher": True,
        "out": str(out),
        **changes,
    }


# schedule


@pytest.mark.parametrize(
    ("step", "settings", "wanted"),
    [
        (0, {}, 1.0),
        (5, {}, 0.5),
        (9, {}, 0.024471741852423234),  # (1 + cos(0.9 pi)) / 2
        (0, {"warmup": 4}, 0.25),
        (3, {"warmup": 4}, 1.0),
        (4, {"warmup": 4}, 1.0),
        (7, {"warmup": 4}, 0.5),
        (2, {"schedule": "constant", "warmup": 4}, 0.75),
        (9, {"schedule": "constant", "warmup": 4}, 1.0),
        (2, {"schedule": "step", "milestones": [3, 6], "gamma": 0.5}, 1.0),
        (3, {"schedule": "step", "milestones": [3, 6], "gamma": 0.5}, 0.5),
        (6, {"schedule": "step", "milestones": [3, 6], "gamma": 0.5}, 0.25),
        (1, {"schedule": "step", "milestones": [3], "warmup": 2}, 1.0),
        (0, {"warmup": 4, "first": 0.2}, 0.2),
        (3, {"warmup": 4, "first": 0.2}, 0.8),
        (4, {"warmup": 4, "first": 0.2}, 1.0),
        (0, {"warmup": 4, "first": 0.0}, 0.0),
        (0, {"warmup": 1, "first": 0.2}, 0.2),
        (0, {"first": 0.2}, 1.0),  # no warm-up, no first step of it
        (0, {"floor": 0.1}, 1.0),
        (5, {"floor": 0.1}, 0.55),
        (9, {"floor": 0.1}, 0.12202456766718091),  # 0.1 + 0.9 (1 + cos(0.9 pi)) / 2
        (10, {"floor": 0.1}, 0.1),  # just after the last step
        (10, {"warmup": 4, "first": 0.2, "floor": 0.1}, 0.1),
        (7, {"warmup": 4, "first": 0.2, "floor": 0.1}, 0.55),
    ],
)
def test_lr_factor(step: int, settings: dict[str, Any], wanted: float):
    assert lr_factor(step, 10, **settings) == pytest.approx(wanted, abs=1e-15)


@given(
    total=st.integers(1, 60),
    share=st.floats(0, 0.99),
    first=st.none() | st.floats(0, 1),
    floor=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "step", "constant"]),
)
def test_the_rate_rises_while_warming_up_and_falls_afterwards(
    total: int, share: float, first: float | None, floor: float, schedule: Any
):
    warmup = int(share * total)
    settings: dict[str, Any] = {"schedule": schedule, "warmup": warmup, "first": first, "floor": floor}
    settings["milestones"] = [warmup + (total - warmup) // 2]
    factors = [lr_factor(step, total, **settings) for step in range(total)]
    rising, falling = factors[:warmup], factors[warmup:]
    assert rising == sorted(rising) and all(0 <= factor <= 1 for factor in rising)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 1.0 or (schedule == "step" and falling[0] == 0.1)  # a milestone may come at once
    if schedule == "cosine":
        assert all(floor <= factor <= 1 + 1e-15 for factor in falling)
        assert lr_factor(total, total, **settings) == pytest.approx(floor, abs=1e-12)


def test_weights_of_a_method_may_fall_from_1_to_0():
    assert [weights_factor(step, 4, "constant") for step in range(4)] == [1.0] * 4
    assert [weights_factor(step, 4, "linear") for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [weights_factor(step, 2, "cosine") for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"schedule": "step", "step_epochs": [2], "warmup_epochs": 0.4}, [0.01, 0.02, *[0.02] * 8, *[0.002] * 5]),
        (
            {"warmup_epochs": 1.0, "warmup_lr": 0.005, "min_lr": 0.004},
            # the cosine: 0.004 + 0.016 (1 + cos(pi k / 10)) / 2 for k = 0..9
            [
                *(0.005, 0.008, 0.011, 0.014, 0.017),
                *(0.02, 0.01960845213, 0.01847213595, 0.01670228202, 0.01447213595),
                *(0.012, 0.00952786405, 0.00729771798, 0.00552786405, 0.00439154787),
            ],
        ),
    ],
)
def test_the_loop_sets_the_learning_rate_of_each_step(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], wanted: list[float]
):
    seen = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: Any, **settings: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.SGD, "step", noted)
        uhkd.distill(**words(teacher, tmp_path / "run", method="scratch", lr=0.02, optimizer="sgd", **settings))
    assert seen == pytest.approx(wanted)


# optimizer


def watching(before: Any, after: Any = None) -> Any:
    """`make_optimizer` whose optimizer calls `before(learner, optimizer)` before each step, and `after` after it."""

    def make(learner: StudentWithLosses, recipe: TrainRecipe) -> Any:
        optimizer = make_optimizer(learner, recipe)
        optimizer.register_step_pre_hook(lambda *_: before(learner, optimizer))
        optimizer.register_step_post_hook(lambda *_: after and after(learner, optimizer))
        return optimizer

    return make


@pytest.mark.parametrize("limit", [None, 0.3, 1e6])
def test_the_student_and_the_methods_own_layers_are_clipped_each_by_itself(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float | None
):
    def norm(side: nn.Module) -> float:
        return float(torch.cat([p.grad.flatten() for p in side.parameters() if p.grad is not None]).norm())

    norms: list[tuple[float, float]] = []
    watch = watching(lambda learner, _: norms.append((norm(learner.student), norm(learner.distillers))))
    monkeypatch.setattr(trainer, "make_optimizer", watch)
    changes = {"clip_grad": limit, "epochs": 1, "weights": {"features": 100.0}, "balance": "constant"}
    uhkd.distill(**words(teacher, tmp_path / "run", **changes))
    assert len(norms) == 5
    if limit == 0.3:
        assert all(norms_of_step == pytest.approx((0.3, 0.3), rel=1e-4) for norms_of_step in norms)
    else:
        assert all(min(norms_of_step) > 0.4 for norms_of_step in norms)


class LiteralAdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101) in float64."""

    def __init__(self) -> None:
        self.m, self.v, self.count = {}, {}, {}

    def step(self, w: Tensor, g: Tensor, name: int, lr: float, decay: float) -> Tensor:
        w, g = w.double(), g.double()
        self.count[name] = self.count.get(name, 0) + 1
        self.m[name] = 0.9 * self.m.get(name, torch.zeros_like(w)) + 0.1 * g
        self.v[name] = 0.999 * self.v.get(name, torch.zeros_like(w)) + 0.001 * g * g
        m, v = self.m[name] / (1 - 0.9 ** self.count[name]), self.v[name] / (1 - 0.999 ** self.count[name])
        return w - lr * (m / (v.sqrt() + 1e-8) + decay * w)


class LiteralSGD:
    """SGD with Nesterov's momentum in torch's form, in float64."""

    def __init__(self) -> None:
        self.b = {}

    def step(self, w: Tensor, g: Tensor, name: int, lr: float, decay: float) -> Tensor:
        g = g.double() + decay * w.double()
        self.b[name] = 0.9 * self.b[name] + g if name in self.b else g
        return w.double() - lr * (g + 0.9 * self.b[name])


@pytest.mark.parametrize(("optimizer", "literal"), [("adamw", LiteralAdamW), ("sgd", LiteralSGD)])
def test_a_fused_optimizer_takes_the_literal_step(
    optimizer: str, literal: type, teacher: Path, tmp_path: Path, monkeypatch
):
    """Also where weights lie channels last, as a pass over raw memory must meet weights and gradients in one order."""
    reference, wanted, compared = literal(), {}, 0

    def before(_: StudentWithLosses, made: torch.optim.Optimizer) -> None:
        assert made.defaults["fused"]
        for group in made.param_groups:
            for p in group["params"]:
                wanted[id(p)] = reference.step(p.detach(), p.grad, id(p), group["lr"], group["weight_decay"])

    def after(_: StudentWithLosses, made: torch.optim.Optimizer) -> None:
        nonlocal compared
        for group in made.param_groups:
            for p in group["params"]:
                torch.testing.assert_close(p.detach().double(), wanted[id(p)], atol=1e-6, rtol=1e-5)
                compared += p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(trainer, "make_optimizer", watching(before, after))
    changes = {
        "optimizer": optimizer,
        "student": "uhkd/resnet10",
        "student_options": {"channels": [8, 8, 16, 16]},
        "lr": 0.01,
    }
    uhkd.distill(**words(teacher, tmp_path / "run", method="uhkd", **changes))
    assert compared > 50


class LiteralLamb:
    """LAMB (You et al. 2020, arXiv 1904.00962) with bias correction, in float64.

    The trust ratio |w| / |update| applies where weights decay; no gradient is shortened.
    """

    def __init__(self) -> None:
        self.count, self.m, self.v = 0, {}, {}

    def step(self, w: Tensor, g: Tensor, name: int, lr: float, decay: float) -> Tensor:
        w, g = w.double(), g.double()
        self.m[name] = 0.9 * self.m.get(name, torch.zeros_like(w)) + 0.1 * g
        self.v[name] = 0.999 * self.v.get(name, torch.zeros_like(w)) + 0.001 * g * g
        m, v = self.m[name] / (1 - 0.9**self.count), self.v[name] / (1 - 0.999**self.count)
        update = m / (v.sqrt() + 1e-6) + decay * w
        ratio = w.norm() / update.norm() if decay and w.norm() > 0 and update.norm() > 0 else 1.0
        return w - lr * ratio * update


def test_lamb_is_the_literal_one_and_shortens_no_gradient(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reference, wanted, norms, compared = LiteralLamb(), {}, [], 0

    def before(_: StudentWithLosses, optimizer: Lamb) -> None:
        reference.count += 1
        for group in optimizer.param_groups:
            for p in group["params"]:
                wanted[id(p)] = reference.step(p.detach(), p.grad, id(p), group["lr"], group["weight_decay"])
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    def after(_: StudentWithLosses, optimizer: Lamb) -> None:
        nonlocal compared
        assert isinstance(optimizer, Lamb)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.02}
        for group in optimizer.param_groups:
            for p in group["params"]:
                torch.testing.assert_close(p.detach().double(), wanted[id(p)], atol=1e-6, rtol=1e-5)
                compared += 1

    monkeypatch.setattr(trainer, "make_optimizer", watching(before, after))
    changes = {"optimizer": "lamb", "clip_grad": None, "label_smoothing": 0.0, "schedule": "constant"}
    result = uhkd.distill(**words(teacher, tmp_path / "run", method="kd", weights={"ce": 3.0}, **changes))
    assert reference.count == 15 and compared == 15 * len(list(result.student.module.parameters()))
    # timm's own limit, 1, would have counted: by different factors from step to step
    assert max(norms) > 1.2 * min(norms) and max(norms) > 1.5
    recipe = result.run.read_recipe()
    assert (recipe["lr"], recipe["weight_decay"]) == (0.005, 0.02)


# learner


class Stub(DistillationLoss):
    default_weights: ClassVar = {"near": 2.0, "idle": 0.0}

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        super().__init__(weights)
        self.needs = Requirements(frozenset({"embedding"}), frozenset({"embedding"}))

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        assert student.embedding is not None and teacher.embedding is not None
        return {"near": (student.embedding - teacher.embedding).square().mean(), "idle": torch.tensor(5.0)}


class Net(nn.Module):
    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def tapped(**sizes: int) -> FeatureExtractor:
    torch.manual_seed(0)
    return wrap_module(Net(**sizes), num_classes=sizes.get("classes", 4), image_size=8, levels=["first", "second"])


def batch(n: int = 6, labelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(5)
    target = torch.rand(n, 4, generator=generator).softmax(1)
    label = torch.randint(4, (n,), generator=generator)
    image = torch.rand(n, 3, 8, 8, generator=generator)
    return Batch(image, target if labelled else None, label if labelled else None, torch.arange(n))


def test_terms_are_raw_named_and_weighed_in_one_place():
    student, other = tapped(), tapped()
    learner = StudentWithLosses(student, nn.ModuleDict({"stub": Stub()}), label_smoothing=0.2)
    assert learner.teacher_needs == {"embedding"} and learner.student_needs == {"embedding"}
    data = batch()
    said = Teacher(other).outputs(data._replace(image=data.image * 0.5), learner.teacher_needs)
    assert said.logits is None and said.maps is None and said.spectra is None
    terms = learner(data, said)
    assert list(terms) == ["ce", "stub.near", "stub.idle"]

    logits = student.plain(data.image)
    assert data.target is not None and said.embedding is not None
    smooth = 0.8 * data.target + 0.2 / 4
    torch.testing.assert_close(terms["ce"], -(smooth * logits.log_softmax(1)).sum(1).mean())
    embedding = student(data.image, frozenset({"embedding"})).embedding
    torch.testing.assert_close(terms["stub.near"], F.mse_loss(embedding, said.embedding))

    assert learner.weights(0.5) == {"ce": 0.5, "stub.near": 2.0, "stub.idle": 0.0}
    torch.testing.assert_close(weighted_sum(terms, learner.weights(0.5)), 0.5 * terms["ce"] + 2 * terms["stub.near"])


def test_without_labels_only_the_method_speaks():
    learner = StudentWithLosses(tapped(), nn.ModuleDict({"stub": Stub({"near": 3.0})}))
    data = batch(labelled=False)
    said = Teacher(tapped()).outputs(data, learner.teacher_needs)
    assert list(learner(data, said)) == ["stub.near", "stub.idle"]
    assert learner.weights()["stub.near"] == 3.0


@pytest.mark.parametrize("terms", [{}, {"ce": torch.tensor(1.0)}])
def test_nothing_to_learn_from_is_said(terms: dict[str, Tensor]):
    with pytest.raises(ValueError, match="nothing to learn from"):
        weighted_sum(terms, {"ce": 0.0})


def test_split_keeps_every_image_once_and_in_order():
    data = batch(6)
    parts: list[Any] = split(data, 3)
    assert [len(p.image) for p in parts] == [2, 2, 2]
    for field in range(4):
        torch.testing.assert_close(torch.cat([p[field] for p in parts]), data[field])
    assert all(p.target is None and p.label is None for p in split(batch(6, labelled=False), 2))
    assert torch.equal(split(data, 1)[0].image, data.image)


def test_step_seeds_differ():
    seeds = {step_seed(seed, step, part) for seed in (0, 1, 2) for step in range(50) for part in range(8)}
    assert len(seeds) == 3 * 50 * 8
    torch.manual_seed(step_seed(2**31 - 1, 10**7, 1000))  # the largest ones are still seeds


def test_accumulation_equals_the_whole_batch(teacher: Path, tmp_path: Path):
    changes = {"method": "kd", "student_options": PLAIN, "optimizer": "sgd", "lr": 0.05, "epochs": 1}
    runs = {n: uhkd.distill(**words(teacher, tmp_path / str(n), grad_accum_steps=n, **changes)) for n in (1, 4)}
    whole, parts = (run.student.state_dict() for run in runs.values())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-6, rtol=1e-4, msg=name)
    for name in ("loss", "ce", "kd.kl"):
        assert runs[4].metrics[name] == pytest.approx(runs[1].metrics[name], rel=1e-4)


# teacher


def test_the_teacher_is_sealed(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = load_run(teacher).train()
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())  # whose statistics could move
    before = {k: v.clone() for k, v in network.state_dict().items()}
    checkpoints = []
    write = RunFolder.write_checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_checkpoint", lambda self, c: (checkpoints.append(c), write(self, c))[1])
        asked: dict[str, Any] = words(teacher, tmp_path / "run", epochs=1) | {"teacher": network}
        uhkd.distill(**asked)
    assert {k: v for k, v in network.state_dict().items() if not torch.equal(v, before[k])} == {}
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    (checkpoint,) = checkpoints
    assert {name.split(".")[0] for name in checkpoint.tensors} == {"student", "distillers", "balance", "ftm"}
    trained = sum(len(group["params"]) for group in checkpoint.optimizer["param_groups"])
    assert trained == len(checkpoint.optimizer["state"]) < len(checkpoint.tensors)


def test_a_teacher_says_exactly_what_is_asked():
    network = tapped()
    target = SpectralTarget(match_levels(network.shapes.maps, network.shapes.maps, 1, "pairs"))
    sealed = Teacher(network, target)
    assert sealed.outputs(Batch(torch.rand(2, 3, 8, 8), None, None, torch.arange(2)), frozenset()) == NetworkOutput()
    with pytest.raises(AssertionError, match="calibrated"):
        sealed.outputs(Batch(torch.rand(2, 3, 8, 8), None, None, torch.arange(2)), frozenset({"spectra"}))
    calibrate(sealed, [batch(6)], CPU)
    said = sealed.outputs(Batch(torch.rand(2, 3, 8, 8), None, None, torch.arange(2)), frozenset({"spectra", "logits"}))
    assert said.maps is None and said.embedding is None
    assert said.spectra is not None and [tuple(s.shape) for s in said.spectra] == [(2, 6, 9), (2, 6, 9)]
    assert said.logits is not None and not said.logits.requires_grad


def test_calibration_uses_the_first_images_and_is_deterministic():
    network = tapped()
    target = SpectralTarget(match_levels(network.shapes.maps, network.shapes.maps, 1, "pairs"))
    data = batch(30)
    batches = [Batch(*(f[i : i + 8] for f in data if f is not None)) for i in range(0, 30, 8)]
    one, two = (Teacher(network, target) for _ in range(2))
    assert calibrate(one, iter(batches), CPU, images=20) == 20
    assert calibrate(two, batches, CPU, images=20) == 20
    assert one.ftm is not None and two.ftm is not None
    state = two.ftm.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in one.ftm.state_dict().items())
    with torch.no_grad():
        raw = one.ftm.raw(network(data.image[:20], frozenset({"maps"})).maps or ())
    torch.testing.assert_close(one.ftm.get_buffer("mean1"), raw[1].mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.ftm.get_buffer("scale1"), raw[1].std(0, correction=0), atol=1e-6, rtol=1e-4)
    assert calibrate(Teacher(network, target), batches, CPU, images=1000) == 30
    with pytest.raises(ValueError, match="at least 2 images"):
        calibrate(Teacher(network, target), batches, CPU, images=1)


def test_calibration_sees_unmixed_training_images_of_view_0(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Batch] = []
    states = []
    real = calibrate

    def spy(sealed: Teacher, batches: Any, device: torch.device, images: int) -> int:
        used = real(sealed, (seen.append(b) or b for b in batches), device, images)
        assert sealed.ftm is not None
        states.append(sealed.ftm.state_dict())
        return used

    monkeypatch.setattr(teaching, "calibrate", spy)
    for name, mixing in {"mixed": {}, "plain": {"mixup": 0.0, "cutmix": 0.0}}.items():
        uhkd.distill(**words(teacher, tmp_path / name, epochs=1, seed=4, **mixing))
    source = open_data("digits", train_limit=100).train
    assert sorted(i for b in seen[: len(seen) // 2] for i in b.index.tolist()) == list(range(100))
    augmentation = Augmentation((8, 8), "pad", flip=False)
    for b in seen:
        assert b.target is not None and b.label is not None
        assert torch.equal(b.target, F.one_hot(b.label, 10).float())
        for image, index in zip(b.image[:5], b.index[:5].tolist(), strict=True):
            wanted = torch.from_numpy(plain_view(source, index, seed=4, view=0, augmentation=augmentation)) / 255
            assert torch.equal(image, wanted)
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_a_linear_probe_separates_and_folds_the_standardisation():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=generator) * 0.1 + F.one_hot(labels, 5)
    probe = fit_linear_probe(x, labels, 3)
    assert (probe(x).argmax(1) == labels).all()
    again = fit_linear_probe(x, labels, 3)
    assert torch.equal(probe.weight, again.weight) and torch.equal(probe.bias, again.bias)
    scale, shift = torch.tensor([0.5, 1.0, 50.0, 2.0, 7.0]), torch.tensor([0.0, -3.0, 400.0, 1.0, 2.0])
    other = fit_linear_probe(x * scale + shift, labels, 3)
    torch.testing.assert_close(other(x * scale + shift), probe(x), atol=0.02, rtol=0.01)


def test_a_linear_probe_stands_constant_features_and_absent_classes():
    labels = torch.arange(40) % 2
    x = torch.stack([labels.float(), torch.zeros(40), torch.full((40,), 0.5)], 1)
    probe = fit_linear_probe(x, labels, 3)
    assert (probe(x).argmax(1) == labels).all()
    assert probe.weight.isfinite().all()


@pytest.mark.parametrize(
    ("counts", "correct", "wanted"),
    [
        ((50, 50), 65, True),  # 0.5 + 3 sqrt(0.25 / 100) = 0.65
        ((50, 50), 66, False),
        ((100,) * 10, 128, True),  # 0.1 + 3 sqrt(0.09 / 1000) = 0.1285
        ((100,) * 10, 129, False),
        ((90, 10), 95, True),  # the commonest class alone gives 0.9; half-way to 1 comes before 3 standard errors
        ((90, 10), 96, False),
        ((3, 3), 4, True),
        ((3, 3), 6, False),  # all of very few images right is no chance level
        ((20,), 20, True),
    ],
)
def test_at_chance(counts: tuple[int, ...], correct: int, wanted: bool):
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    assert at_chance(correct, labels) is wanted


# finiteness


def test_totals_mean_and_survive_json():
    totals = RunningMetrics(CPU)
    for x in (0.1, 0.7, 1 / 3):
        totals.add(torch.tensor(x), {"ce": torch.tensor(2 * x)})
    copy = RunningMetrics(CPU)
    copy.restore(json.loads(json.dumps(totals.as_dict())))
    for t in (totals, copy):
        t.add(torch.tensor(0.3), {"ce": torch.tensor(0.9)})
    assert copy.means() == totals.means()
    assert totals.means()["loss"] == pytest.approx((0.1 + 0.7 + 1 / 3 + 0.3) / 4)
    totals.reset()
    assert totals.means() == {}


def test_totals_name_the_terms_that_are_not_finite_and_do_not_forget():
    totals = RunningMetrics(CPU)
    totals.add(torch.tensor(1.0), {"ce": torch.tensor(1.0)})
    totals.check_finite(1, "kept")
    totals.add(torch.tensor(float("nan")), {"ce": torch.tensor(1.0), "uhkd.kl": torch.tensor(float("inf"))}, step=6)
    with pytest.raises(ValueError, match=r"by step 7 \(terms: uhkd\.kl\); the old one is kept\. Try a lower lr"):
        totals.check_finite(7, "the old one is kept")
    totals.reset()
    totals.add(torch.tensor(1.0), {"ce": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="their weighted sum"):
        totals.check_finite(8, "kept")


def test_totals_look_at_weights():
    totals = RunningMetrics(CPU)
    totals.check_parameters([torch.ones(3), torch.zeros(())])
    totals.check_finite(1, "kept")
    totals.check_parameters([torch.ones(3), torch.tensor([1.0, float("inf")])])
    with pytest.raises(ValueError, match="weights stopped being finite by step 2"):
        totals.check_finite(2, "kept")


class Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * float("inf")


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    calls = iter(range(100))

    def poisoned(*given: Any) -> Tensor:
        loss = weighted_sum(*given)
        if next(calls) != 7:
            return loss
        return loss * float("nan") if kind == "loss" else Overflow.apply(loss)

    asked = words(teacher, tmp_path / "run", checkpoint_minutes=1e-9, log_every=1)
    with monkeypatch.context() as patched:
        patched.setattr(stepping, "weighted_sum", poisoned)
        with pytest.raises(ValueError, match=r"finite by step 8 .*checkpoint of step 7 is kept.*lower lr"):
            uhkd.distill(**asked)
    checkpoint = RunFolder(tmp_path / "run").read_checkpoint()
    assert checkpoint is not None and checkpoint.step == 7
    assert all(v.isfinite().all() for v in checkpoint.tensors.values() if v.is_floating_point())
    assert uhkd.distill(**asked, resume=True).metrics["step"] == 15


# resuming


class Interrupted(Exception):
    pass


def stopping(after: int) -> Any:
    """`ProgressBar.follow` that breaks off once `after` steps of this process are done."""
    follow = ProgressBar.follow

    def limited(self: ProgressBar, batches: Any) -> Iterator[Any]:
        for count, item in enumerate(follow(self, batches)):
            if count == after:
                raise Interrupted
            yield item

    return limited


def keeping(steps: set[int]) -> Any:
    """`RunFolder.write_checkpoint` that writes those of some steps alone."""
    write = RunFolder.write_checkpoint

    def chosen(self: RunFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.step in steps:
            write(self, checkpoint)

    return chosen


@pytest.fixture
def keep_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs keep their last checkpoint, for a look at the optimizer."""
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda self: None)


# batch norm has statistics to average; lamb counts its steps beside the state of each weight
AVERAGED = {"student": "uhkd/resnet10", "student_options": {"channels": [8, 12, 16, 24]}, "ema_decay": 0.8}
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "averaged": AVERAGED
    | {"optimizer": "lamb", "warmup_epochs": 0.8, "warmup_lr": 1e-4, "min_lr": 1e-4}
    | {"randaugment": "rand-m9-mstd0.5-inc1", "erasing": 0.25},
}


@pytest.fixture(scope="module")
def side_effect_free(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        for kind, changes in KINDS.items():
            runs[kind] = tmp_path_factory.mktemp("whole") / kind
            uhkd.distill(**words(teacher, runs[kind], checkpoint_minutes=1e-9, **changes))
    return runs


@pytest.mark.usefixtures("keep_checkpoints")
@pytest.mark.parametrize(
    ("saved", "stopped", "kind"),
    [
        (set(), 3, "fp32"),  # before any checkpoint: from the start
        ({7}, 7, "fp32"),  # in the middle of an epoch
        ({7}, 7, "bf16"),
        ({7}, 7, "averaged"),
        ({4}, 12, "fp32"),  # two validations later than the checkpoint: their rows are made again
        ({2, 10}, 10, "bf16"),  # between two epochs
        ({14, 15}, 15, "fp32"),  # after the last step, before the result
        ({14, 15}, 15, "averaged"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_bit(
    side_effect_free: dict[str, Path],
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: set[int],
    stopped: int,
    kind: str,
):
    asked = words(teacher, tmp_path / "run", checkpoint_minutes=1e-9, **KINDS[kind])
    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "follow", stopping(stopped))
        patched.setattr(RunFolder, "write_checkpoint", keeping(saved))
        if stopped == 15:
            patched.setattr(fit, "draw", _interrupt)
        with pytest.raises(Interrupted):
            uhkd.distill(**asked)
    run = RunFolder(tmp_path / "run")
    checkpoint = run.read_checkpoint()
    assert (checkpoint.step if checkpoint else None) == (max(saved) if saved else None)
    assert not run.result.exists()
    torch.manual_seed(999)  # what the process drew before must not matter
    np.random.seed(999)
    result = uhkd.distill(**asked, resume=True)
    assert result.metrics["step"] == 15
    assert_equal_runs(RunFolder(side_effect_free[kind]), run, [5, 10, 15])


def test_a_run_is_not_resumed_on_other_images(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), dtype=np.uint8)
    file = tmp_path / "mine.npz"

    def write(labels: np.ndarray) -> None:
        np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    write(np.arange(64) % 4)
    asked = words(
        teacher, tmp_path / "run", data=str(file), train_limit=None, method="scratch", checkpoint_minutes=1e-9
    )
    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "follow", stopping(2))
        with pytest.raises(Interrupted):
            uhkd.distill(**asked)
    write(np.arange(64)[::-1] % 4)
    with pytest.raises(ValueError, match="the images or labels of mine have changed since it was started"):
        uhkd.distill(**asked, resume=True)
    assert RunFolder(tmp_path / "run").read_checkpoint() is not None


def _interrupt(*_: Any) -> None:
    raise Interrupted


_KILLED = """
import json, os, signal, sys
import uhkd
from uhkd.runs import checkpoints

words, step = json.loads(sys.argv[1]), sys.argv[2]
write = checkpoints.write_atomically

def deadly(path, content):
    if path.name == "optimizer.pt" and path.parent.name.startswith(f".step-{step}."):
        path.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

checkpoints.write_atomically = deadly
uhkd.distill(**words)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
@pytest.mark.usefixtures("keep_checkpoints")
@pytest.mark.parametrize("kind", ["fp32", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bf16", "averaged"))])
def test_a_killed_process_goes_on_to_the_bit(
    side_effect_free: dict[str, Path], teacher: Path, tmp_path: Path, kind: str
):
    """A process of its own is killed while it writes the checkpoint of step 9, the half of which is left behind."""
    asked = words(teacher, tmp_path / "run", checkpoint_minutes=1e-9, **KINDS[kind])
    source = str(Path(uhkd.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, json.dumps(asked), "9"],
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    run = RunFolder(tmp_path / "run")
    assert [p.name for p in run.checkpoints.glob(".step-9.*.tmp")]
    checkpoint = run.read_checkpoint()
    assert checkpoint is not None and checkpoint.step == 8
    assert len(run.read_metrics()) == 1
    uhkd.distill(**asked, resume=True)
    assert_equal_runs(RunFolder(side_effect_free[kind]), run, [5, 10, 15])


def test_another_seed_is_another_run(side_effect_free: dict[str, Path], teacher: Path, tmp_path: Path):
    """What the tests above compare does depend on what is drawn at random."""
    uhkd.distill(**words(teacher, tmp_path / "run", seed=1))
    assert RunFolder(tmp_path / "run").weights.read_bytes() != RunFolder(side_effect_free["fp32"]).weights.read_bytes()


def test_the_loader_of_the_loop_is_the_counted_one(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Steps 0..14 are read once each, in epochs of whole batches."""
    steps = []
    real = train_loader

    def spy(*args: Any, **settings: Any) -> Any:
        loader = real(*args, **settings)
        steps.extend(loader.steps)
        return loader

    monkeypatch.setattr("uhkd.training.batches.train_loader", spy)
    uhkd.distill(**words(teacher, tmp_path / "run", method="scratch", batch_size=30, epochs=2))
    assert steps == [0, 1, 2, 3, 4, 5]


# averaged weights


@pytest.mark.usefixtures("keep_checkpoints")
def test_averages_are_validated_and_saved_while_training_goes_on_without_them(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def state(network: nn.Module) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in network.state_dict().items() if v.is_floating_point()}

    average: dict[str, Tensor] = {}
    wanted, shown, real = [], [], trainer.evaluate
    averaged = AVERAGED | {"balance": "constant"}  # `lead` reads the accuracy of the averages

    def before(learner: StudentWithLosses, _: Any) -> None:
        # the first weights: nothing but statistics has changed, and those began at 0 and 1
        if not average:
            average.update({k: v.double() for k, v in state(learner.student).items()})
            average.update({k: torch.zeros_like(v) for k, v in average.items() if k.endswith("running_mean")})
            average.update({k: torch.ones_like(v) for k, v in average.items() if k.endswith("running_var")})

    def after(learner: StudentWithLosses, _: Any) -> None:
        average.update({k: 0.8 * average[k] + 0.2 * v.double() for k, v in state(learner.student).items()})
        wanted.append(dict(average))

    def evaluated(network: FeatureExtractor, *others: Any) -> Any:
        shown.append(state(network))
        return real(network, *others)

    plain = uhkd.distill(**words(teacher, tmp_path / "plain", **averaged | {"ema_decay": None}))
    monkeypatch.setattr(trainer, "make_optimizer", watching(before, after))
    monkeypatch.setattr(trainer, "evaluate", evaluated)
    run = uhkd.distill(**words(teacher, tmp_path / "averaged", **averaged))

    assert len(shown) == 3 and len(wanted) == 15 and any(k.endswith("running_var") for k in average)
    for found, literal in zip(shown, wanted[4::5], strict=True):
        for name, value in literal.items():
            torch.testing.assert_close(found[name].double(), value, atol=1e-6, rtol=1e-5, msg=name)
    saved = load_state(run.run.weights)
    assert all(torch.equal(saved[name.removeprefix("module.")], value) for name, value in shown[-1].items())

    # the network that learns is that of a run without averages, to the bit
    own, other = run.run.read_checkpoint(), plain.run.read_checkpoint()
    assert own is not None and other is not None
    assert {k for k in own.tensors if not k.startswith("average.")} == other.tensors.keys()
    assert [k for k, v in other.tensors.items() if not torch.equal(v, own.tensors[k])] == []
    rows = [{k: v for k, v in each.metrics.items() if k not in TIMES} for each in (run, plain)]
    assert {k for k in rows[0] if rows[0][k] != rows[1][k]} >= {"val_nll"}
    assert {k: v for k, v in rows[0].items() if "val" not in k} == {k: v for k, v in rows[1].items() if "val" not in k}
