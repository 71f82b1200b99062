"""Distillation for loops of one's own: the engine's numbers, a sealed teacher, and a clear line for each misuse."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import uhkd
from uhkd.data import Batch, BatchPlan, train_loader
from uhkd.models import create
from uhkd.training import fit, weighted_sum
from uhkd.training.setup import Setup

CLASSES = 10
SMALL: dict[str, Any] = {"channels": [8, 8, 16, 16]}
WORDS: dict[str, Any] = {"num_classes": CLASSES, "image_size": 16}


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % CLASSES


def teacher(name: str = "uhkd/resnet10") -> Any:
    torch.manual_seed(5)
    return create(name, num_classes=CLASSES, image_size=16, options=SMALL)


def made(method: str = "uhkd", **words: Any) -> uhkd.Distillation:
    return uhkd.Distillation(teacher(), "uhkd/vit_micro", method=method, **WORDS | words)


def grads(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


class Captured(Exception):
    """What a training was about to do."""


@pytest.mark.parametrize("method", ["uhkd", "rsd+kd", "crd"])
def test_a_step_has_the_numbers_of_the_engine(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, statistics, terms and gradients of what `uhkd.distill` trains, bit by bit."""

    def capture(job: Setup) -> None:
        raise Captured(job)

    monkeypatch.setattr(fit, "Trainer", capture)
    words = {"data": "digits", "train_limit": 200, "seed": 3, "out": tmp_path / "run", "method": method}
    words |= {"device": "cpu", "precision": "fp32", "workers": 0, "image_size": 16, "allow_weak_teacher": True}
    if method == "uhkd":  # a loop of one's own does not measure its teacher on held-out images
        words |= {"balance": "lead", "balance_settings": {"bound": "none"}}
    settings = {"crd": {"negatives": 16}}.get(method, {})
    with pytest.raises(Captured) as caught:
        uhkd.distill(
            teacher=teacher(), student="uhkd/vit_micro", settings=settings, weights={"ce": 0.5}, **words, batch_size=20
        )
    job: Setup = caught.value.args[0]

    def loader(augmentation: Any, size: int) -> Iterable[Batch]:
        return train_loader(job.data.train, augmentation, BatchPlan(3, size, epochs=1), num_classes=CLASSES)

    own = made(method, seed=3, num_samples=len(job.data.train), settings=settings, weights={"ce": 0.5})
    own.train().learner.choose_memory_format()
    used = own.calibrate(loader(replace(job.augmentation, mixup=0.0, cutmix=0.0), len(job.data.train)))
    assert used == (len(job.data.train) if method == "uhkd" else 0)
    assert job.teacher is not None
    job.learner.train()
    expected = job.learner.state_dict() | job.teacher.state()
    state = {name.removeprefix("learner."): tensor for name, tensor in own.state_dict().items()}
    assert state.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(state[name], expected[name])]

    batch = next(iter(loader(job.augmentation, 20)))
    batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
    torch.manual_seed(7)
    terms = job.learner(batch, job.teacher.outputs(batch, job.learner.teacher_needs))
    loss = weighted_sum(terms, job.learner.weights(job.ce_weight), job.learner.balance)
    loss.backward()
    torch.manual_seed(7)
    again, named = own(batch.image, batch.label, batch.index)
    again.backward()
    assert torch.equal(again, loss)
    torch.testing.assert_close(named, terms, rtol=0, atol=0)
    theirs, ours = grads(job.learner.named_parameters()), grads(own.learner.named_parameters())
    assert len(theirs) > 10
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_teacher_is_sealed() -> None:
    own = made()
    taught = own.teacher
    assert taught is not None
    before = {name: tensor.clone() for name, tensor in taught.state_dict().items()}
    x, y = images()
    own.calibrate([x])
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    first = [p.clone() for p in own.parameters()]
    own.train()
    assert not taught.training
    own(x, y)[0].backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(first, own.parameters(), strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in taught.state_dict().items())
    in_memory = {id(p) for p in own.parameters()}
    assert not [p for p in taught.parameters() if id(p) in in_memory or p.requires_grad]
    sizes = (
        sum(p.numel() for p in own.student.parameters()),
        sum(p.numel() for p in own.learner.distillers.parameters()),
    )
    assert sum(p.numel() for p in own.parameters()) == sum(sizes)
    assert not [name for name in own.state_dict() if "layer4" in name]  # the teacher's
    own.to(torch.float64)
    assert next(taught.parameters()).dtype == torch.float64


def test_a_checkpoint_goes_on_without_the_teachers_weights(tmp_path: Path) -> None:
    x, y = images()
    own = made()
    own.calibrate([(x, y)])
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01)
    own(x, y)[0].backward()
    optimizer.step()
    torch.save(own.state_dict(), tmp_path / "checkpoint.pt")
    expected, _ = own(x, y)
    other = made(seed=1)
    other.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert not other.needs_calibration
    found, _ = other(x, y)
    assert torch.equal(found, expected)


def test_normalised_images_are_undone() -> None:
    x, y = images()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    norm = [torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std)]
    plain, own = made(), made(mean=mean, std=std)
    plain.calibrate([x])
    own.calibrate([(x - norm[0]) / norm[1]])
    torch.testing.assert_close(own((x - norm[0]) / norm[1], y)[0], plain(x, y)[0], rtol=1e-4, atol=1e-4)


def test_labels_may_be_missing_or_mixed() -> None:
    x, y = images()
    own = made("kd")
    assert own.calibrate([x]) == 0
    assert not own.needs_calibration
    assert list(own(x)[1]) == ["kd.kl"]
    soft = torch.eye(CLASSES)[y]
    torch.testing.assert_close(own(x, soft), own(x, y))
    mixed = 0.7 * soft + 0.3 * soft.flip(0)
    assert not torch.allclose(own(x, mixed)[1]["ce"], own(x, y)[1]["ce"])
    own.weights["kd.kl"] = 0.0  # a schedule of one's own
    loss, terms = own(x, y)
    torch.testing.assert_close(loss, terms["ce"])


def test_scratch_needs_no_teacher() -> None:
    x, y = images()
    own = uhkd.Distillation(None, "uhkd/vit_micro", method="scratch", **WORDS)
    assert own.teacher is None
    assert list(own(x, y)[1]) == ["ce"]


def test_the_student_leaves_alone(tmp_path: Path) -> None:
    x, _ = images()
    own = made("kd")
    names = [f"digit {i}" for i in range(CLASSES)]
    folder = own.save(tmp_path / "student", names)
    loaded = uhkd.load_run(folder)
    assert loaded.config.classes == tuple(names)
    assert torch.equal(loaded(x).logits, own.student.eval()(x).logits)
    with pytest.raises(ValueError, match="is there already; choose a folder that is new or empty"):
        own.save(folder)
    with pytest.raises(ValueError, match="classes must be 10 names, found 2"):
        own.save(tmp_path / "other", ["a", "b"])
    mine = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    own = uhkd.Distillation(teacher(), mine, method="kd", **WORDS)
    assert own.student.module is mine


def test_misuse_is_told_in_one_line() -> None:
    x, y = images()
    own = made()
    cases: list[tuple[str, Any]] = [
        ("uhkd compares standardised spectra .* call calibrate", lambda: own(x, y)),
        (r"images must be in \[0, 1\], found -2.* give mean and std", lambda: own.calibrate([4 * x - 2])),
        (r"images must be in \[0, 1\], found 0.*to 25", lambda: own.calibrate([255 * x])),
        ("after mean and std were undone", lambda: made(mean=[0.5] * 3, std=[9.0] * 3).calibrate([x])),
        ("needs at least 2 images", lambda: own.calibrate([x[:1]])),
        ("crd keeps a memory of every training image: give num_samples", lambda: made("crd")),
        ("crd keeps a memory of every training image: call with", lambda: made("crd", num_samples=9)(x, y)),
        (
            r"indices must be 0 to 3 \(num_samples is 4\), found 0 to 7",
            lambda: made("crd", num_samples=4)(x, y, torch.arange(8)),
        ),
        (r"labels must be 0 to 9 \(num_classes is 10\), found 5 to 12", lambda: made("kd")(x, y + 5)),
        ("mean and std belong together", lambda: made(mean=(0.5, 0.5, 0.5))),
        ("ResNet gives 10 classes, expected 7", lambda: uhkd.Distillation(None, teacher(), num_classes=7)),
        ("method 'uhkd' needs a teacher", lambda: uhkd.Distillation(None, "uhkd/vit_micro", **WORDS)),
        ("unknown method 'uhk'", lambda: made("uhk")),
    ]
    for said, act in cases:
        with pytest.raises(ValueError, match=said):
            act()


def test_the_copy_in_a_weights_file_can_be_chosen(tmp_path: Path):
    plain = teacher().module.state_dict()
    average = {name: value + 1 for name, value in plain.items()}
    torch.save({"model": plain, "model_ema": average}, tmp_path / "w.pth")
    words = WORDS | {f"{who}_start": tmp_path / "w.pth" for who in ("student", "teacher")}
    words |= {f"{who}_options": SMALL for who in ("student", "teacher")} | {"teacher_weights_key": "model_ema"}
    both = uhkd.Distillation("uhkd/resnet10", "uhkd/resnet10", method="kd", **words)
    assert torch.equal(both.student.module.state_dict()["conv1.weight"], plain["conv1.weight"])
    assert both.teacher is not None
    assert torch.equal(both.teacher.module.state_dict()["conv1.weight"], average["conv1.weight"])
    swapped = uhkd.Distillation(None, "uhkd/resnet10", method="scratch", **words | {"student_weights_key": "model_ema"})
    assert torch.equal(swapped.student.module.state_dict()["conv1.weight"], average["conv1.weight"])
