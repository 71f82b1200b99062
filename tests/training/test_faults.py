"""What goes wrong while a network trains, each by the real fault: it stops with one clear line and loses nothing."""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import uhkd
from references.runs import assert_equal_runs
from uhkd.runs import RunFolder
from uhkd.training import fit
from uhkd.training import step as stepping
from uhkd.training.signals import TrainingInterrupted

TINY: dict[str, Any] = {
    "model": "uhkd/resnet10",
    "options": {"channels": [8, 8, 16, 16]},
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "checkpoint_minutes": 1e-9,
}
STEPS = [5, 10, 15]


@pytest.fixture(autouse=True)
def _hear_interrupts() -> Iterator[None]:
    """What runs in the background of a shell is started deaf to them, and deaf it stays."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _keep_checkpoints_and_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda self: None)
    monkeypatch.setattr(fit, "draw", lambda folder: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        patched.setattr(fit, "draw", lambda folder: [])
        yield uhkd.finetune(**TINY, out=tmp_path_factory.mktemp("whole") / "run").run


def meanwhile(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> None:
    """Do something in the middle of the `at`-th step of this process."""
    real, count = stepping.weighted_sum, [0]

    def weighted_sum(*args: Any) -> Tensor:
        count[0] += 1
        if count[0] == at:
            act()
        return real(*args)

    monkeypatch.setattr(stepping, "weighted_sum", weighted_sum)


def goes_on_as(whole: RunFolder, out: Path, words: dict[str, Any] = TINY) -> None:
    assert_equal_runs(whole, uhkd.finetune(**words, out=out, resume=True).run, STEPS)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
@pytest.mark.parametrize("at", [3, 5])  # in the middle of an epoch, and at its end
def test_a_signal_lets_the_step_end_and_saves_it(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, at: int
):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    words = TINY | {"checkpoint_minutes": 60.0}
    with monkeypatch.context() as patched:
        meanwhile(patched, at, lambda: os.kill(os.getpid(), number))
        with pytest.raises(
            TrainingInterrupted, match=rf"stopped by {name} after step {at} of 15; the checkpoint of step {at} is kept"
        ) as stop:
            uhkd.finetune(**words, out=tmp_path / "run")
    assert stop.value.code == code and signal.getsignal(number) is before
    assert not (tmp_path / "run" / ".owner").exists()
    goes_on_as(whole, tmp_path / "run", words)


def test_a_second_interrupt_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    meanwhile(monkeypatch, 3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt) as stop:
        uhkd.finetune(**TINY, out=tmp_path / "run")
    assert not isinstance(stop.value, TrainingInterrupted)
    checkpoint = RunFolder(tmp_path / "run").read_checkpoint()
    assert checkpoint is not None and checkpoint.step == 2


def test_signals_that_the_program_handles_itself_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        meanwhile(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert uhkd.finetune(**TINY, out=tmp_path / "run").metrics["step"] == 15
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_too(whole: RunFolder, tmp_path: Path):
    """As a scheduler or a terminal sends it: the loader's processes get it as well."""
    words = TINY | {"workers": 2, "epochs": 3}
    program = (
        "import json, os, signal, sys\n"
        "from uhkd.training import step\n"
        "from uhkd.__main__ import main\n"
        "real, count = step.weighted_sum, [0]\n"
        "def weighted_sum(*args):\n"
        "    count[0] += 1\n"
        "    if count[0] == 4: os.killpg(0, signal.SIGTERM)\n"
        "    return real(*args)\n"
        "step.weighted_sum = weighted_sum\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    flags = "--device cpu --precision fp32 --workers 2 --epochs 3 --batch-size 20 --image-size 16 --train-limit 100"
    command = ["finetune", "--model", TINY["model"], "--data", "digits", "--options", "channels=[8, 8, 16, 16]"]
    command += flags.split(" ")
    out = tmp_path / "my run"
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    assert done.returncode == 143, done.stderr[-3000:]
    stopped = (
        f"stopped by SIGTERM after step 4 of 15; the checkpoint of step 4 is kept in {out}; resume with: uhkd finetune"
    )
    assert f"{stopped} {shlex.join(command[1:])} --out '{out}' --resume\n" in done.stderr
    goes_on_as(whole, out, words | {"checkpoint_minutes": 10.0})


def test_a_loader_process_that_is_killed_costs_nothing(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = TINY | {"workers": 2}

    def kill() -> None:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    with monkeypatch.context() as patched:
        meanwhile(patched, 3, kill)
        with pytest.raises(
            ValueError,
            match=r"loads images was ended from outside .*; the checkpoint of step \d+ is kept",
        ):
            uhkd.finetune(**words, out=tmp_path / "run")
    checkpoint = RunFolder(tmp_path / "run").read_checkpoint()
    assert checkpoint is not None and checkpoint.step >= 3
    goes_on_as(whole, tmp_path / "run", words)


def test_an_image_that_vanishes_or_breaks_is_named_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    for i in range(60):
        place = tmp_path / "images" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 120, (80, 80, 3), dtype=np.uint8) + np.uint8(
            100 * (i % 2)
        )  # too large to be kept in memory
        Image.fromarray(picture).save(place / f"{i}.png")
    words = TINY | {"data": str(tmp_path / "images"), "train_limit": None, "batch_size": 10, "epochs": 3}
    whole = uhkd.finetune(**words, out=tmp_path / "whole").run
    away = tmp_path / "away"
    for number, fault in enumerate(
        (lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:200]))
    ):
        out = tmp_path / f"run-{number}"
        shutil.copytree(tmp_path / "images", away)

        def break_all(fault: Callable[[Path], object] = fault) -> None:
            for file in (tmp_path / "images").rglob("*.png"):
                fault(file)

        with monkeypatch.context() as patched:
            meanwhile(patched, 3, break_all)
            with pytest.raises(ValueError, match=r"images.*class\d.*\d+\.png.*; the checkpoint of step 3 is kept"):
                uhkd.finetune(**words, out=out)
        shutil.rmtree(tmp_path / "images")
        away.rename(tmp_path / "images")
        resumed = uhkd.finetune(**words, out=out, resume=True).run
        assert_equal_runs(whole, resumed, [row["step"] for row in whole.read_metrics()])


def poison(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Some forward passes of this process give NaN."""
    real, count = stepping.weighted_sum, [0]

    def weighted_sum(*args: Any) -> Tensor:
        count[0] += 1
        return real(*args) * (float("nan") if count[0] in at else 1.0)

    monkeypatch.setattr(stepping, "weighted_sum", weighted_sum)


def test_a_loss_of_nan_names_its_step_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, {7})
    with pytest.raises(ValueError, match=r"loss stopped being finite by step 10 .*no checkpoint .*nonfinite=skip"):
        uhkd.finetune(**TINY | {"checkpoint_minutes": 60.0, "log_every": 5}, out=tmp_path / "run")
    (found,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert found["step"] == 7 and len(set(found["images"])) == 20 and max(found["images"]) < 100
    assert found["images"] == visited(7)


def visited(step: int) -> list[int]:
    """Images of a step, from the loader of such a training."""
    from uhkd.data import Augmentation, BatchPlan, open_data, train_loader

    data = open_data("digits", train_limit=100)
    loader = train_loader(data.train, Augmentation((8, 8)), BatchPlan(0, batch_size=20, epochs=3), num_classes=10)
    return list(loader)[step - 1].index.tolist()


def test_steps_of_nan_can_be_skipped_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights and statistics are those of a training in which the steps did not happen; a resumed run counts on."""
    seen: list[dict[str, Tensor]] = []
    real = stepping.TrainStep.__call__

    def watched(self: stepping.TrainStep, *args: Any) -> None:
        real(self, *args)
        seen.append({k: v.clone() for k, v in self.learner.state_dict().items()})

    words = TINY | {"nonfinite": "skip"}
    with monkeypatch.context() as patched:
        patched.setattr(stepping.TrainStep, "__call__", watched)
        poison(patched, {3, 7})
        run = uhkd.finetune(**words, out=tmp_path / "whole").run
    assert all(torch.equal(seen[2][k], seen[1][k]) for k in seen[1]) and all(
        torch.equal(seen[6][k], seen[5][k]) for k in seen[5]
    )
    assert any(not torch.equal(seen[3][k], seen[2][k]) for k in seen[2])
    assert [row["skipped"] for row in run.read_metrics()] == [1, 2, 2]
    noted = json.loads((run.path / "nonfinite.json").read_text())
    assert [(line["step"], line["images"]) for line in noted] == [(3, visited(3)), (7, visited(7))]
    with monkeypatch.context() as patched:
        poison(patched, {3})
        meanwhile(patched, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            uhkd.finetune(**words, out=tmp_path / "run")
    with monkeypatch.context() as patched:
        poison(patched, {1})  # step 7
        resumed = uhkd.finetune(**words, out=tmp_path / "run", resume=True).run
    assert_equal_runs(run, resumed, STEPS)


def test_nothing_but_nan_is_not_skipped_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, set(range(3, 1000)))
    with pytest.raises(
        ValueError, match=r"10 steps in a row, up to step 12, gave no finite gradient; the checkpoint of step"
    ):
        uhkd.finetune(**TINY | {"nonfinite": "skip", "log_every": 4}, out=tmp_path / "run")


class Sick(nn.Module):
    """A teacher that gives NaN, from the start or for some images."""

    def __init__(self, always: bool = False, classes: int = 10) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.always = nn.Linear(8, classes), always

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu() * (torch.nan if self.always else 1.0)).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("method", ["kd", "uhkd"])
def test_a_teacher_of_nan_is_refused(tmp_path: Path, method: str):
    words = {k: v for k, v in TINY.items() if k not in ("model", "options")} | {
        "student": "uhkd/vit_micro",
        "allow_weak_teacher": True,
    }
    with pytest.raises(ValueError, match=r"NaN|finite"):
        uhkd.distill(teacher=Sick(True), method=method, **words, out=tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


class Late(Sick):
    """Sound in eval mode, NaN in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (torch.nan if self.training else 1.0)


def test_a_student_of_nan_stops_in_the_first_step(tmp_path: Path):
    words = {k: v for k, v in TINY.items() if k not in ("model", "options")} | {"log_every": 50}
    with pytest.raises(ValueError, match=r"^the loss is not finite in the first step \(ce\), before any update: "):
        uhkd.finetune(model=Late(), **words, out=tmp_path / "run")
    (found,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert found["step"] == 1


class Fussy(Sick):
    """Sound, but for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.where(x.mean((1, 2, 3)) > 0.8, torch.nan, 1.0)[:, None]


def bright(number: int) -> tuple[list[tuple[np.ndarray, int]], list[tuple[np.ndarray, int]]]:
    """Forty dark images of two classes and ten to validate on; one of them is bright."""
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 90 + 60 * (i % 2), (16, 16, 3), np.uint8), i % 2) for i in range(50)]
    images[number] = (np.full((16, 16, 3), 250, np.uint8), images[number][1])
    return images[:40], images[40:]


def test_a_teacher_of_nan_for_one_image_is_named_and_the_last_good_state_kept(tmp_path: Path):
    from uhkd.data import ArraySource, batch_images

    words: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("model", "options", "data", "train_limit")}
    words |= {"student": "uhkd/resnet10", "student_options": TINY["options"], "method": "kd", "crop": "none"}
    step = 2
    images = batch_images(ArraySource(np.zeros((40, 1, 1), np.uint8), None), seed=0, batch_size=10, step=step).tolist()
    words |= {
        "teacher": Fussy(classes=2),
        "data": bright(images[4]),
        "batch_size": 10,
        "allow_weak_teacher": True,
        "flip": False,
    }
    for resume in (False, True):  # and again
        with pytest.raises(ValueError, match=rf"the teacher's output is not finite in step {step + 1} ") as caught:
            uhkd.distill(**words, out=tmp_path / "run", resume=resume)
        assert f"; the checkpoint of step {step} is kept." in str(caught.value) and "\n" not in str(caught.value)
        (found,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
        assert found["step"] == step + 1 and found["images"] == images
        checkpoint = RunFolder(tmp_path / "run").read_checkpoint()
        assert checkpoint is not None and checkpoint.step == step
    skipping = uhkd.distill(**words | {"nonfinite": "skip"}, out=tmp_path / "skipping").run
    assert [row["skipped"] for row in skipping.read_metrics()] == [1, 2, 3]
    noted = json.loads((skipping.path / "nonfinite.json").read_text())
    assert noted[0] == found and all(images[4] in one["images"] for one in noted) and len(noted) == 3


@pytest.mark.parametrize("method", ["uhkd", "fitnet", "rkd"])
def test_whatever_a_teacher_says_is_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    """Maps, spectra and embeddings of nan from the third step on, of a teacher that was sound while it was got ready."""
    words: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("model", "options")} | {
        "allow_weak_teacher": True
    }
    words |= {"student": "uhkd/resnet10", "student_options": TINY["options"], "method": method, "image_size": 32}
    teacher = Sick()
    meanwhile(monkeypatch, 2, lambda: setattr(teacher, "always", True))
    with pytest.raises(
        ValueError, match=r"the teacher.s output is not finite in step 3 .its images .*; the checkpoint of step 2 is"
    ):
        uhkd.distill(teacher=teacher, **words, out=tmp_path / "run")


def test_what_came_first_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A student's own overflow is not laid at the door of a teacher that falls ill after it."""
    words: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("model", "options")} | {
        "allow_weak_teacher": True
    }
    words |= {
        "student": "uhkd/resnet10",
        "student_options": TINY["options"],
        "method": "kd",
        "checkpoint_minutes": 60.0,
    }
    teacher = Sick()
    poison(monkeypatch, {2})
    meanwhile(monkeypatch, 3, lambda: setattr(teacher, "always", True))
    with pytest.raises(ValueError, match="the loss stopped being finite by step 5"):
        uhkd.distill(teacher=teacher, **words, out=tmp_path / "run")


def folder_of_images(place: Path, seed: int = 0) -> Path:
    """Sixty pictures of two classes, too large to be kept in memory, all files of one size."""
    rng = np.random.default_rng(seed)
    for i in range(60):
        (place / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 120, (80, 80, 3), dtype=np.uint8) + np.uint8(100 * (i % 2))
        Image.fromarray(picture).save(place / f"class{i % 2}" / f"{i}.bmp")
    return place


@pytest.mark.slow
def test_images_that_change_beside_a_cache_are_noticed_and_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their files keep name and size: only the pictures themselves tell, each of them as it is shown."""
    words = {k: v for k, v in TINY.items() if k not in ("model", "options", "train_limit")}
    words |= {"data": str(folder_of_images(tmp_path / "images")), "batch_size": 10}
    storing = {
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "data": words["data"],
        "views": 2,
        "image_size": None,
    }
    storing = {k: v for k, v in storing.items() if v is not None} | {
        "allow_weak_teacher": True,
        "teacher_head": "probe",
    }
    teacher = uhkd.finetune(
        **words | {"epochs": 1, "model": TINY["model"], "options": TINY["options"]}, out=tmp_path / "t"
    )
    uhkd.cache(**storing, teacher=str(teacher.run.path), out=tmp_path / "cache")
    words |= {"student": "uhkd/resnet10", "student_options": TINY["options"], "teacher_cache": str(tmp_path / "cache")}
    words |= {"method": "kd"}
    whole = uhkd.distill(**words, out=tmp_path / "whole").run
    shutil.copytree(tmp_path / "images", tmp_path / "kept")
    with monkeypatch.context() as patched:
        meanwhile(patched, 3, lambda: folder_of_images(tmp_path / "images", 1))
        with pytest.raises(
            ValueError, match=r"the teacher of .* the file of the image has changed.*; the checkpoint of step 3"
        ):
            uhkd.distill(**words, out=tmp_path / "run")
    with pytest.raises(ValueError, match="the file of the image has changed"):
        uhkd.distill(**words, out=tmp_path / "run", resume=True)
    shutil.copytree(tmp_path / "kept", tmp_path / "images", dirs_exist_ok=True)
    resumed = uhkd.distill(**words, out=tmp_path / "run", resume=True).run
    assert_equal_runs(whole, resumed, [row["step"] for row in whole.read_metrics()])


def test_images_that_change_in_size_are_noticed_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = TINY | {"data": str(folder_of_images(tmp_path / "images")), "train_limit": None, "batch_size": 10}
    whole = uhkd.finetune(**words, out=tmp_path / "whole").run
    with monkeypatch.context() as patched:
        meanwhile(patched, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            uhkd.finetune(**words, out=tmp_path / "run")
    changed = tmp_path / "images" / "class0" / "0.bmp"
    before = changed.read_bytes()
    Image.new("RGB", (81, 80)).save(changed)
    with pytest.raises(
        ValueError, match=r"cannot resume .*run: the images or labels of images have changed since it was started"
    ):
        uhkd.finetune(**words, out=tmp_path / "run", resume=True)
    changed.write_bytes(before)
    resumed = uhkd.finetune(**words, out=tmp_path / "run", resume=True).run
    assert_equal_runs(whole, resumed, [row["step"] for row in whole.read_metrics()])


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "names"])
def test_a_damaged_probe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    words: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("model", "options")}
    words |= {
        "student": "uhkd/resnet10",
        "student_options": TINY["options"],
        "method": "kd",
        "allow_weak_teacher": True,
    }
    words |= {"teacher": Sick(), "teacher_head": "probe"}
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        meanwhile(patched, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            uhkd.distill(**words, out=out)
    probe = RunFolder(out).probe
    kept, state = probe.read_bytes(), load_file(probe)
    if damage == "cut":
        probe.write_bytes(kept[:-20])
    elif damage == "shape":
        save_file({"weight": torch.ones(3, 3), "bias": torch.ones(3)}, probe)
    elif damage == "nan":
        save_file(state | {"bias": state["bias"] * torch.nan}, probe)
    else:
        save_file({"other": torch.ones(3)}, probe)
    with pytest.raises(ValueError, match=r"teacher_probe\.safetensors is damaged \(.*\); delete it to have the probe"):
        uhkd.distill(**words, out=out, resume=True)
    probe.unlink()
    uhkd.distill(**words, out=out, resume=True)
    assert probe.read_bytes() == kept


def test_too_little_memory_comes_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A CPU's allocator that really cannot: more than any machine has."""
    meanwhile(monkeypatch, 3, lambda: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"not enough memory for step 3 of 15; .* 2 is kept\. .*--grad-accum-steps"):
        uhkd.finetune(**TINY, out=tmp_path / "run")


FULL = """
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import uhkd
from uhkd.training import fit
from uhkd.training import step
from uhkd.runs import RunFolder

words, small, place = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
RunFolder.drop_checkpoints = lambda self: None
fit.draw = lambda folder: []
out = small / "run"

def fill():
    with (small / "filler").open("wb", buffering=0) as file:
        try:
            while True: file.write(bytes(4096))
        except OSError: pass

def close():
    subprocess.run(["mount", "--bind", out, out], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", out], check=True)

def before(real, at, act):
    count = [0]
    def wrapped(*args):
        count[0] += 1
        if count[0] == at: act()
        return real(*args)
    return wrapped

FAULTS = {
    "full": (step, "weighted_sum", 8, fill),
    "read-only": (step, "weighted_sum", 8, close),
    "full for the rows": (RunFolder, "write_metrics", 3, fill),
    "full for the diagnostics": (RunFolder, "write_arrays", 4, fill),
    "full for the weights": (RunFolder, "write_model", 1, fill),
    "full for the result": (fit, "draw", 1, fill),
    "read-only for the weights": (RunFolder, "write_model", 1, close),
    "full from the start": (RunFolder, "begin", 1, fill),
    "read-only from the start": (RunFolder, "lock", 1, lambda: (out.mkdir(), close())),
    "read-only when it goes on": (RunFolder, "lock", 2, close),
}
said = {}
for fault, (owner, name, at, act) in FAULTS.items():
    real, weigh = getattr(owner, name), step.weighted_sum
    setattr(owner, name, before(real, at, act))
    if at == 2:
        step.weighted_sum = before(weigh, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            uhkd.finetune(**words, out=out)
        except KeyboardInterrupt:
            step.weighted_sum = weigh
    try:
        uhkd.finetune(**words, out=out, resume=RunFolder(out).started())
    except ValueError as error:
        said[fault] = str(error)
    setattr(owner, name, real)
    (small / "filler").unlink(missing_ok=True)
    subprocess.run(["umount", out], stderr=subprocess.DEVNULL)
    uhkd.finetune(**words, out=out, resume=RunFolder(out).started())
    litter = [file.name for file in out.rglob("*.tmp")] + [file.name for file in out.glob(".owner")]
    assert not litter, (fault, litter)
    shutil.move(out, place / fault)
(place / "said.json").write_text(json.dumps(said))
"""
DISK_FAULTS = {
    "full": "the checkpoint of step 8 could not be written (No space left on device); the checkpoint of step 7 is kept.",
    "read-only": "the checkpoint of step 8 could not be written (Read-only file system); the checkpoint of step 7 is kept.",
    "full for the rows": "the rows of step 15 could not be written (No space left on device); the checkpoint of step 14",
    "full for the diagnostics": "the rows of step 15 could not be written (No space left on device); the checkpoint of",
    "full for the weights": "the trained network could not be written (No space left on device); the checkpoint of step 15",
    "full for the result": "the trained network could not be written (No space left on device); the checkpoint of step 15",
    "read-only for the weights": "the trained network could not be written (Read-only file system); the checkpoint of step 15",
    "full from the start": "the run's recipe could not be written (No space left on device); nothing was trained yet.",
    "read-only from the start": "the folder could not be written (Read-only file system); nothing in it was touched.",
    "read-only when it goes on": "the folder could not be written (Read-only file system); nothing in it was touched.",
}


@pytest.fixture(scope="module")
def disk_faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Trainings on a file system of some megabytes of their own, which is filled or closed; what each said, and its end."""
    place = tmp_path_factory.mktemp("disk")
    small, ends = place / "small", place / "ends"
    small.mkdir()
    ends.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=4m small "{small}" && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a file system of his own")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", FULL, json.dumps(TINY), str(small), str(ends)],
        env=os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ends, json.loads((ends / "said.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_fails_costs_nothing(whole: RunFolder, disk_faults: tuple[Path, dict[str, str]], fault: str):
    ends, said = disk_faults
    assert said[fault].startswith(DISK_FAULTS[fault]) and "\n" not in said[fault]
    begun = "from the start" not in fault
    assert ". Make room on the disk of " in said[fault]
    assert said[fault].endswith("then resume with --resume" if begun else "then start it again")
    assert_equal_runs(whole, RunFolder(ends / fault), STEPS)


@pytest.mark.slow
def test_two_trainings_on_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second is refused while the first works on, and the first does not notice."""
    refusals = []

    def intrude() -> None:
        program = "import json, sys, uhkd\nuhkd.finetune(**json.loads(sys.argv[1]))"
        words = TINY | {"out": str(tmp_path / "run"), "resume": True}
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(words)],
            env=os.environ | {"PYTHONPATH": str(Path(uhkd.__file__).parents[1])},
            capture_output=True,
            text=True,
        )
        refusals.append(done.stderr)

    meanwhile(monkeypatch, 7, intrude)
    assert uhkd.finetune(**TINY, out=tmp_path / "run").metrics["step"] == 15
    assert f"run is in use by process {os.getpid()} on " in refusals[0]


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patched:
        meanwhile(patched, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            uhkd.finetune(**TINY, out=tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-8" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    goes_on_as(whole, tmp_path / "run")
    said = capsys.readouterr().err
    assert (
        "a newer checkpoint is damaged and was skipped: step-8: tensors.safetensors differs from its checksum" in said
    )
    assert "resuming at step 7 of 15" in said


@pytest.mark.parametrize("when", ["before resuming", "in a step"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_side_files_that_are_lost_cost_their_own_content_alone(
    whole: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    when: str,
):
    folder = RunFolder(tmp_path / "run")

    def lose() -> None:
        for path in (folder.environment, folder.diagnostics, folder.path / "progress.json", folder.metrics):
            if damage == "missing":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:40] if damage == "cut" else b'["other"]\n')

    with monkeypatch.context() as patched:
        meanwhile(patched, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            uhkd.finetune(**TINY, out=folder.path)
    if when == "before resuming":
        lose()
    else:
        meanwhile(monkeypatch, 4, lose)  # step 12, after the validation of step 10
    uhkd.finetune(**TINY, out=folder.path, resume=True)
    assert folder.weights.read_bytes() == whole.weights.read_bytes()
    assert [row["val_nll"] for row in folder.read_metrics()] == [row["val_nll"] for row in whole.read_metrics()]
    assert folder.read_result()["environment"]["versions"] == whole.read_result()["environment"]["versions"]
    logged = capsys.readouterr().err
    assert (
        f"warning: {folder.environment} cannot be read (" in logged
        and "the run continues without its content" in logged
    )
    assert uhkd.report(runs=[folder.path], out=tmp_path / "page.html")["runs"] == [folder.path.name]
