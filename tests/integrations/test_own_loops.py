"""Loops of one's own: the examples of docs/your-loop.md train two epochs with the real libraries, and what loops rely on."""

import importlib
import importlib.util
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import uhkd
from references import own_loops
from references.nodes import ENVIRON, TORCHRUN

ROOT = Path(__file__).parents[2]
CHANCE = 0.1
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # Lightning's advice
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning asks torch in an older way
]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CNN that has learned digits for some epochs, as a run folder."""
    words: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "options": {"channels": [8, 16, 24, 32]},
    }
    words |= {"data": "digits", "image_size": 16, "epochs": 4, "optimizer": "adamw", "lr": 0.01}
    result = uhkd.finetune(model="uhkd/resnet10", out=tmp_path_factory.mktemp("teacher") / "run", **words)
    assert result.metrics["val_accuracy"] > 0.5
    return str(result.run.path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_plain_pytorch(teacher: str) -> None:
    assert example("plain_loop").main(teacher) > 3 * CHANCE
    assert uhkd.evaluate(run="runs/plain", data="digits", device="cpu")["accuracy"] > 3 * CHANCE


@pytest.mark.slow
def test_lightning(teacher: str) -> None:
    """In bf16; the terms are logged, the checkpoint lacks the teacher, and a training goes on from it."""
    trainer = example("lightning_loop").main(teacher, precision="bf16-mixed", **QUIET)
    metrics = trainer.callback_metrics
    assert metrics["val/accuracy"] > 2 * CHANCE
    assert {"train/loss", "train/ce", "train/uhkd.features", "train/uhkd.relations", "val/loss"} <= metrics.keys()
    assert uhkd.load_run("runs/lightning/student").config.classes[3] == "3"
    path = trainer.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "layer4" in name]  # the teacher's
    assert "distillation.ftm.mean0" in checkpoint["state_dict"]


def test_lightning_goes_on_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after an epoch and resumed, the weights are those of an uninterrupted training."""
    from pytorch_lightning import Trainer

    from uhkd.integrations.lightning import UHKDLightningModule

    loader = DataLoader(TensorDataset(*own_loops.whole()), batch_size=4)
    words: dict[str, Any] = {**QUIET, "logger": False, "enable_checkpointing": False}
    validated: list[tuple[float, int]] = []

    def fitted(epochs: int, ckpt_path: str | None = None) -> UHKDLightningModule:
        module = UHKDLightningModule(
            own_loops.teacher(),
            **own_loops.STUDENT,
            teacher_accuracy=1.0,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
        )
        trainer = Trainer(max_epochs=epochs, **words)
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        trainer.save_checkpoint(f"{epochs}.ckpt")
        assert validated[-1] == (trainer.callback_metrics["val/accuracy"].item(), len(loader.dataset))
        return module

    real = uhkd.Distillation.validated
    monkeypatch.setattr(
        uhkd.Distillation, "validated", lambda self, *given: (validated.append(given), real(self, *given))
    )
    whole = fitted(2)
    assert len(validated) == 2  # not that of the trainer's check before the first step
    fitted(1)

    def never(*_: object) -> int:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(uhkd.Distillation, "calibrate", never)
    resumed = fitted(2, "1.ckpt")
    assert resumed.student is resumed.distillation.student
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_timm(teacher: str) -> None:
    """timm's loop with its loaders, EMA and checkpoints; the checkpoint's student is timm's own."""
    import timm

    assert example("timm_loop").main(teacher) > 300 * CHANCE
    checkpoint = torch.load("last.pth.tar", weights_only=False)
    for state in ("state_dict", "state_dict_ema"):
        timm.create_model("test_resnet", num_classes=10).load_state_dict(checkpoint[state])


def test_a_timm_task_goes_on_from_a_checkpoint() -> None:
    """Steps, an EMA and a checkpoint in timm's way: student, average, the method's layers and statistics come back."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
    from timm.utils import CheckpointSaver

    from uhkd.integrations.timm import UHKDTask

    def fresh(loader: Any = None) -> tuple[Any, Any, Any]:
        model = timm.create_model("test_resnet", num_classes=own_loops.CLASSES)
        task = UHKDTask(model, own_loops.teacher(), loader, image_size=32, verbose=False)
        return model, task, create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=1e-3)

    model = timm.create_model("test_resnet")
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    images, labels = own_loops.whole()
    images = (images.repeat_interleave(2, 2).repeat_interleave(2, 3) - mean) / std  # as timm's loader gives them
    model, task, optimizer = fresh([(images, labels)])
    task.setup_ema(decay=0.5)
    task.get_trainable_module().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(3):
        result = task(images, labels)
        assert {"loss", "ce", "uhkd.features"} <= result.keys()
        assert result["loss"].requires_grad
        assert not result["ce"].requires_grad
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step + 1)
    CheckpointSaver(task.get_trainable_module(), optimizer, checkpoint_dir=".", task=task).save_checkpoint(
        0, metric=1.0
    )
    checkpoint = torch.load("last.pth.tar", weights_only=False)
    assert checkpoint["state_dict"].keys() == before.keys()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in checkpoint["state_dict"].items())
    assert checkpoint["task_state"].keys() == {"distillers", "balance", "ftm"}
    # the student sees what timm's loader gives, as it does alone
    torch.testing.assert_close(task.eval().distillation.student_logits(images), model(images), rtol=1e-4, atol=1e-4)

    model, resumed, optimizer = fresh()
    resumed.setup_ema(decay=0.5)
    assert resumed.distillation.needs_calibration
    assert resume_task_checkpoint(resumed, "last.pth.tar", optimizer, log_info=False) == 1
    load_task_ema_checkpoint(resumed, "last.pth.tar")
    assert not resumed.distillation.needs_calibration
    assert resumed.get_eval_model() is model
    for ema in (False, True):
        found, wanted = (t.get_eval_model(ema=ema).state_dict() for t in (resumed, task))
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert torch.equal(resumed.eval()(images, labels)["loss"], task.eval()(images, labels)["loss"])
    head = {id(model.fc.weight), id(model.fc.bias)}
    clipped = {id(p) for p in resumed.get_clip_parameters(exclude_head=True)}
    assert not head & clipped
    assert {id(p) for p in resumed.get_clip_parameters()} - clipped == head


def test_a_timm_loop_cannot_say_which_image_is_which() -> None:
    import timm

    from uhkd.integrations.timm import UHKDTask

    model = timm.create_model("test_resnet", num_classes=own_loops.CLASSES)
    with pytest.raises(ValueError, match="crd needs the index of each image, which timm's loops do not pass"):
        UHKDTask(model, own_loops.teacher(), method="crd", num_samples=12, image_size=32)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for package, module, said in (
        ("pytorch_lightning", "uhkd.integrations.lightning", r"uhkd\[lightning\]"),
        ("timm.task", "uhkd.integrations.timm", "timm>="),
    ):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"is missing: pip install .{said}"):
            importlib.import_module(module)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    out = tmp_path / "found.safetensors"
    command = [*TORCHRUN, "--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0", str(own_loops.__file__), str(out)]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found = load_file(out)
    expected = own_loops.gradients(0, 1)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5 * float(tensor.float().abs().max()) + 1e-7)
    names = [name.removeprefix("lightning/0/") for name in found if name.startswith("lightning/0/")]
    assert "distillation.ftm.mean0" in names
    assert all(torch.equal(found[f"lightning/0/{name}"], found[f"lightning/1/{name}"]) for name in names)


def test_the_page_shows_the_examples() -> None:
    """Every block of Python in docs/your-loop.md that begins with a docstring is the file of the example named before it."""
    text = (ROOT / "docs" / "your-loop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`examples/(\w+\.py)`[^`]*```python\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in blocks] == ["plain_loop.py", "lightning_loop.py", "timm_loop.py"]
    for name, block in blocks:
        assert block == (ROOT / "examples" / name).read_text(encoding="utf-8"), name


def test_lightning_takes_no_image_from_the_trainers_loader(monkeypatch: pytest.MonkeyPatch):
    """With persistent workers a loader has one iterator, which the trainer holds when the statistics are taken."""
    from uhkd.integrations.lightning import UHKDLightningModule

    images = TensorDataset(torch.rand(48, 3, 16, 16), torch.randint(0, 10, (48,)))
    loader = DataLoader(images, batch_size=8, num_workers=1, persistent_workers=True)
    teacher = uhkd.create("uhkd/resnet10", num_classes=10, image_size=16)
    module = UHKDLightningModule(teacher, "uhkd/vit_micro", num_classes=10, image_size=16)
    monkeypatch.setattr(UHKDLightningModule, "trainer", SimpleNamespace(train_dataloader=loader))
    batches = iter(loader)
    module.on_train_start()
    assert not module.distillation.needs_calibration
    assert len(list(batches)) == 6


def test_one_module_is_not_both():
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10)
    )
    with pytest.raises(ValueError, match="teacher and student share weights"):
        uhkd.Distillation(module, module, method="kd", num_classes=10, image_size=16)
