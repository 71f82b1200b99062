"""`uhkd.finetune` and `uhkd.distill` as a user calls them, on folders, words and objects of the user's own."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import uhkd
from uhkd.features import FeatureExtractor
from uhkd.models import load_run, load_state, wrap_module
from uhkd.recipe import DistillRecipe, FinetuneRecipe, RecipeError, build, load_yaml
from uhkd.reporting.plots import draw
from uhkd.runs import RunFolder
from uhkd.training import fit, setup
from uhkd.training import load_teacher as teaching
from uhkd.training import teachers as voices
from uhkd.training.progress import ProgressBar
from uhkd.training.setup import Setup

COLOURS = ("blue", "green", "red")
MACHINE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}
TINY = MACHINE | {"data": "digits", "train_limit": 100, "image_size": 16, "batch_size": 20}
CNN = {"channels": [8, 12, 16, 24]}
VIT = {"embed_dim": 24, "depth": 3, "num_heads": 2}
ALWAYS = {"recipe.yaml", "environment.json", "card.json", "model.safetensors", "metrics.csv", "result.json"}
ALWAYS |= {
    "diagnostics.npz",
    "curves.png",
    "thumbnails.jpg",
    "progress.json",
    "calibration.json",
    "latency.json",
    "SHA256SUMS",
}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these trainings; tests that look at them draw them."""
    monkeypatch.setattr(fit, "draw", lambda run: [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures of three colours, 16 by 18 pixels: 24 to train and 8 to validate on, each."""
    root, rng = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for channel, colour in enumerate(reversed(COLOURS)):
            (root / part / colour).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (16, 18, 3), dtype=np.uint8)
                image[..., channel] += 120
                Image.fromarray(image).save(root / part / colour / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> uhkd.Result:
    """A CNN that knows something of digits."""
    words = TINY | {"train_limit": 200, "epochs": 8, "optimizer": "sgd", "crop": "none", "label_smoothing": 0.0}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        out = tmp_path_factory.mktemp("training") / "teacher"
        return uhkd.finetune(model="uhkd/resnet10", options=CNN, out=out, **words)


def pupil(teacher: Any, out: Path, **changes: Any) -> dict[str, Any]:
    words = {"teacher": teacher.run.path if isinstance(teacher, uhkd.Result) else teacher, "out": out}
    return TINY | {"student": "uhkd/vit_micro", "student_options": VIT, "epochs": 1} | words | changes


def names(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()} - {".lock"}  # stays: to delete a lock is a race


class Net(nn.Module):
    """A user's own network without batch statistics."""

    def __init__(self, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Digits(Dataset[tuple[Tensor, int]]):
    """A user's own data: stripes as floating tensors and their labels."""

    def __init__(self, count: int = 60) -> None:
        self.images = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))
        for i in range(count):
            self.images[i, i % 2] *= 0.2

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 2


# the run folder


def test_finetune_on_a_folder_leaves_every_file_and_learns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fit, "draw", draw)
    words = MACHINE | {"data": folder, "image_size": 16, "batch_size": 12, "epochs": 6, "crop": "none", "lr": 0.01}
    result = uhkd.finetune(model="uhkd/resnet10", options=CNN, out=tmp_path / "run", **words)
    assert names(tmp_path / "run") == ALWAYS
    assert result.metrics["val_accuracy"] > 0.8
    assert not result.student.training
    said = result.run.read_result()
    assert said["verb"] == "finetune" and said["model"] == "uhkd/resnet10" and said["seed"] == 0
    assert said["metrics"] == result.metrics == pytest.approx(result.run.read_metrics()[-1])
    assert said["parameters"] == sum(p.numel() for p in result.student.module.parameters())
    assert said["extra_parameters"] == 0 and said["train_images"] == 72 and said["data"] == "colours"
    assert said["environment"]["versions"]["torch"] and said["data_fingerprint"]
    rows = result.run.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["step"] == 36
    assert {"loss", "ce", "lr", "val_nll", "val_ece", "seconds", "images_per_second", "data_wait"} <= rows[0].keys()
    card = result.run.read_config()
    assert card["classes"] == list(COLOURS) and card["num_classes"] == 3 and card["image_size"] == [16, 16]
    again = load_run(tmp_path / "run")
    image = torch.rand(2, 3, 16, 18)
    with torch.no_grad():
        torch.testing.assert_close(again.plain(image), result.student.plain(image))  # their memory formats differ


def test_distill_leaves_every_file_and_its_recipe_reruns_to_the_same_weights(
    teacher: uhkd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = pupil(teacher, tmp_path / "one", mixup=0.3, epochs=2, seed=3)
    words |= {"settings": {"radius": 1}, "weights": {"features": 5.0, "ce": 0.5}, "balance": "constant"}
    with monkeypatch.context() as patched:
        patched.setattr(fit, "draw", draw)
        result = uhkd.distill(**words)
    assert names(tmp_path / "one") == ALWAYS | {"spectra.png", "cka.png"}
    said = result.run.read_result()
    assert (said["verb"], said["method"], said["student"]) == ("distill", "uhkd", "uhkd/vit_micro")
    assert said["teacher"] == str(teacher.run.path) and said["seed"] == 3
    assert said["extra_parameters"] > 0
    row = said["metrics"]
    assert row["loss"] == pytest.approx(
        0.5 * row["ce"]
        + row["uhkd.inter"]
        + row["uhkd.intra"]
        + 5 * row["uhkd.features"]
        + 300 * row["uhkd.relations"],
        rel=1e-4,
    )
    # both times the same validation images, brought to the same size in the same way
    for name in ("accuracy", "nll", "ece"):
        assert said["teacher_metrics"][name] == pytest.approx(teacher.metrics[f"val_{name}"], abs=1e-5)

    recipe = load_yaml(tmp_path / "one" / "recipe.yaml")
    assert recipe["lr"] == 0.001 and recipe["weight_decay"] == 0.05  # what was left to defaults is written out
    assert "resume" not in recipe
    again = uhkd.distill(**recipe | {"out": str(tmp_path / "two")})
    assert again.run.weights.read_bytes() == result.run.weights.read_bytes()
    third = uhkd.distill(build(DistillRecipe, recipe), out=tmp_path / "three", seed=4)  # words beside a recipe count
    assert third.run.read_recipe()["seed"] == 4
    assert third.run.weights.read_bytes() != result.run.weights.read_bytes()


def test_mistyped_words_are_all_told_at_once(tmp_path: Path):
    with pytest.raises(RecipeError) as refusal:
        uhkd.finetune(modle="uhkd/resnet10", data="digits", epochs=0, out=tmp_path / "run")
    assert len(refusal.value.problems) == 3
    with pytest.raises(RecipeError, match="epoch: unknown key"):
        uhkd.finetune(FinetuneRecipe(model="uhkd/resnet10", data="digits"), epoch=3)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.txt").write_text("notes")
    monkeypatch.setattr(setup, "open_recipe_data", _never)
    with pytest.raises(ValueError, match="not empty"):
        uhkd.finetune(model="uhkd/resnet10", out=tmp_path, **TINY)
    with pytest.raises(ValueError, match="nothing to resume"):
        uhkd.finetune(model="uhkd/resnet10", out=tmp_path, resume=True, **TINY)
    assert names(tmp_path) == {"mine.txt"}


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("limit", [{"train_limit": 15}, {"batch_size": 2000}])
def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, limit: dict[str, int]):
    with pytest.raises(ValueError, match=r"batch_size \d+ is larger than the \d+ images of .*; use --batch-size"):
        uhkd.finetune(model="uhkd/resnet10", out=tmp_path / "run", **TINY | limit)
    assert not (tmp_path / "run").exists()


def test_a_batch_nobody_asked_for_is_fitted_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    batches = []

    def caught(job: Setup) -> None:
        batches.append(job.recipe.batch_size)
        raise Stop

    monkeypatch.setattr(fit, "Trainer", caught)
    words = {k: v for k, v in TINY.items() if k != "batch_size"} | {"model": "uhkd/resnet10", "options": CNN}
    with pytest.raises(Stop):
        uhkd.finetune(out=tmp_path / "words", **words)
    with pytest.raises(Stop):
        uhkd.finetune(build(FinetuneRecipe, words), out=tmp_path / "recipe")
    with pytest.raises(Stop):
        uhkd.finetune(build(FinetuneRecipe, words | {"batch_size": 60}), out=tmp_path / "asked")
    assert batches == [16, 16, 60]


def test_parts_of_a_batch_too_small_for_statistics_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="leaves 1 image a part"):
        uhkd.finetune(model="uhkd/resnet10", out=tmp_path / "run", **TINY | {"grad_accum_steps": 20})


# objects of the user's own


def test_modules_and_data_of_ones_own(tmp_path: Path):
    torch.manual_seed(0)
    net, pair = Net(2), (Digits(60), Digits(20))
    words = MACHINE | {"epochs": 15, "batch_size": 12, "crop": "none", "flip": False, "lr": 0.01}
    made = uhkd.finetune(model=net, data=pair, out=tmp_path / "teacher", **words)
    assert made.student.module is net
    assert made.metrics["val_accuracy"] > 0.8
    assert made.run.read_recipe()["model"] == "module/Net" and made.run.read_recipe()["data"] == "object/tuple"
    assert made.run.read_config()["name"] == "module/Net"
    state = load_state(made.run.weights)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())

    before = {k: v.clone() for k, v in net.state_dict().items()}
    learner = Net(2, width=5)
    first = learner.first.weight.detach().clone()
    words = words | {"epochs": 1, "method": "uhkd"}
    result = uhkd.distill(teacher=net, student=learner, data=Digits(60), out=tmp_path / "student", **words)
    assert result.student.module is learner
    assert not torch.equal(learner.first.weight, first)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert result.run.read_result()["teacher"] == "module/Net"
    assert {"uhkd.inter", "uhkd.features"} <= result.metrics.keys()
    assert result.run.read_result()["train_images"] == 48  # a fifth became the validation part


def test_a_tapped_model_of_ones_own(teacher: uhkd.Result, tmp_path: Path):
    bare = FeatureExtractor(Net(10), input_size=(16, 16), levels=["first", "second"])
    result = uhkd.distill(**pupil(teacher, tmp_path / "run", method="kd") | {"student": bare})
    assert result.student is bare
    assert result.run.read_config()["levels"] == ["first", "second"]
    wrong = wrap_module(Net(4), num_classes=4, image_size=16, levels=["first"])
    with pytest.raises(ValueError, match="Net gives 4 classes, expected 10"):
        uhkd.distill(**pupil(teacher, tmp_path / "wrong") | {"student": wrong})
    with pytest.raises(ValueError, match="Net gives 4 classes, expected 10"):
        uhkd.distill(**pupil(teacher, tmp_path / "wrong") | {"student": Net(4)})


# the student's first weights


class Stop(Exception):
    pass


def test_the_same_seed_gives_the_same_student_whatever_the_method(
    teacher: uhkd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    starts: dict[str, dict[str, Tensor]] = {}

    def caught(job: Setup) -> None:
        starts[name] = {k: v.clone() for k, v in job.learner.student.state_dict().items()}
        raise Stop

    monkeypatch.setattr(fit, "Trainer", caught)
    for name, changes in {
        "scratch": {"method": "scratch"},
        "kd": {"method": "kd"},
        "twin": {"method": "twin_b"},
        "uhkd": {"method": "uhkd", "settings": {"fam": "mlp"}},
        "other": {"method": "uhkd", "seed": 1},
    }.items():
        with pytest.raises(Stop):
            uhkd.distill(**pupil(teacher, tmp_path / name, **changes))
    name = "finetune"
    with pytest.raises(Stop):
        uhkd.finetune(model="uhkd/vit_micro", options=VIT, out=tmp_path / name, **TINY | {"epochs": 1})
    weight = "module.patch_embed.proj.weight"
    assert not torch.equal(starts["other"][weight], starts["scratch"][weight])
    for name in ("kd", "twin", "uhkd", "finetune"):
        assert starts[name].keys() == starts["scratch"].keys()
        assert all(torch.equal(v, starts["scratch"][k]) for k, v in starts[name].items())


# teachers


def test_weights_that_fall_leave_the_cross_entropy_alone(teacher: uhkd.Result, tmp_path: Path):
    words = {"epochs": 2, "warmup_epochs": 0, "batch_size": 100, "method": "kd", "weights_schedule": "linear"}
    rows = uhkd.distill(**pupil(teacher, tmp_path / "run", **words)).run.read_metrics()
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["ce"] + w * row["kd.kl"] for row, w in zip(rows, (1.0, 0.5), strict=True)], rel=1e-5
    )


def test_scratch_never_loads_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(voices, "prepare_teacher", _never)
    result = uhkd.distill(**pupil("timm/there_is_no_such_network", tmp_path / "run", method="scratch"))
    assert "teacher_metrics" not in result.run.read_result()
    assert result.run.read_result()["extra_parameters"] == 0
    assert not [name for name in result.metrics if name.startswith("scratch.")]
    words = pupil("", tmp_path / "alone", method="scratch")
    del words["teacher"]
    assert uhkd.distill(**words).run.weights.read_bytes() == result.run.weights.read_bytes()
    with pytest.raises(ValueError, match="teacher: required but not given"):
        uhkd.distill(**words | {"method": "kd", "out": tmp_path / "taught"})


def _knows_nothing() -> Net:
    net = Net()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return net


def test_a_teacher_at_chance_is_refused_with_advice_unless_it_is_wanted(tmp_path: Path):
    words = pupil("", tmp_path / "run", method="kd") | {"teacher": _knows_nothing()}
    with pytest.raises(ValueError) as refusal:
        uhkd.distill(**words)
    message = str(refusal.value)
    assert "module/Net is at chance level" in message and "143 right, 10 classes" in message
    assert "uhkd finetune --model module/Net --data digits" in message and "--allow-weak-teacher" in message
    assert not (tmp_path / "run").exists()
    result = uhkd.distill(**words, allow_weak_teacher=True)
    assert result.run.read_result()["teacher_metrics"]["accuracy"] < 0.2


def test_a_teacher_whose_outputs_have_another_order_is_refused_with_the_cause(teacher: uhkd.Result, tmp_path: Path):
    module = load_run(teacher.run.path).module
    head = module.get_submodule("fc")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.roll(1, 0))
    with pytest.raises(
        ValueError, match=r"check that output k is the k-th class of the data \(0, 1, .*, 7 and 2 more\); else"
    ):
        uhkd.distill(**pupil("", tmp_path / "run", method="kd") | {"teacher": module})


def test_a_named_teacher_at_random_is_refused_too(tmp_path: Path):
    start = {"teacher_start": "random", "teacher_options": VIT | {"num_classes": 10, "depth": 1}, "method": "kd"}
    with pytest.raises(ValueError, match="chance level"):
        uhkd.distill(**pupil("uhkd/vit_micro", tmp_path / "run", **start))


def stopping(after: int) -> Any:
    """`ProgressBar.follow` that breaks off after some steps."""
    follow = ProgressBar.follow

    def limited(self: ProgressBar, batches: Any) -> Iterator[Any]:
        for count, item in enumerate(follow(self, batches)):
            if count == after:
                raise Stop
            yield item

    return limited


def test_a_head_that_does_not_fit_is_replaced_by_a_probe_announced_kept_and_reused(
    teacher: uhkd.Result,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    words = pupil(teacher, tmp_path / "run", data=folder, train_limit=None, batch_size=24, epochs=2)
    words |= {"checkpoint_minutes": 1e-9}
    whole = uhkd.distill(**words | {"out": tmp_path / "whole"})
    said = capsys.readouterr().err
    assert "a linear probe on the teacher's embedding of 72 training images: it has 10 classes, the data 3" in said
    assert "(linear probe)" in said
    assert whole.run.read_result()["teacher_metrics"]["accuracy"] > 0.5
    assert {k: tuple(v.shape) for k, v in load_state(whole.run.probe).items()} == {"weight": (3, 24), "bias": (3,)}
    assert teacher.run.read_config()["num_classes"] == 10  # the teacher's own folder is untouched

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "follow", stopping(2))
        with pytest.raises(Stop):
            uhkd.distill(**words)
    kept = RunFolder(tmp_path / "run").probe.read_bytes()
    assert kept == whole.run.probe.read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "fit_linear_probe", _never)
        resumed = uhkd.distill(**words, resume=True)
    assert "loaded from the run folder" in capsys.readouterr().err
    assert resumed.run.probe.read_bytes() == kept
    assert resumed.run.weights.read_bytes() == whole.run.weights.read_bytes()

    with pytest.raises(ValueError, match=r"head does not fit: it has 10 classes, the data 3; use teacher_head=auto"):
        uhkd.distill(**words | {"out": tmp_path / "keep", "teacher_head": "keep"})


def test_classes_in_another_order_do_not_fit_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    network = wrap_module(Net(10), num_classes=10, image_size=8, levels=["first", "second"])
    network.config = replace(network.config, classes=tuple("1023456789"))
    words = pupil("", tmp_path / "run", method="kd", allow_weak_teacher=True) | {"teacher": network}
    uhkd.distill(**words)
    assert "its classes have other names or another order ('1' where the data has '0')" in capsys.readouterr().err


def test_the_head_of_a_run_with_other_classes_is_noted(
    teacher: uhkd.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other"
    other.mkdir()
    for file in (teacher.run.config, teacher.run.weights):
        shutil.copy(file, other)
    config = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps(config | {"classes": list("1023456789")}))

    def noted(**words: Any) -> bool:
        recipe = build(FinetuneRecipe, TINY | {"epochs": 1, "out": str(tmp_path / "run")} | words)
        setup.prepare(recipe, dry_run=True)
        note = " although its classes have other names or another order ('1' where the data has '0')"
        log = " ".join(capsys.readouterr().err.split())
        assert ("training starts from the head of" in log) == (note in log)
        return note in log

    for file in (other, other / "model.safetensors"):
        assert noted(model="uhkd/resnet10", options=CNN, start=str(file))
    assert noted(model=str(other))
    assert not noted(model="uhkd/resnet10", options=CNN, start=str(teacher.run.path))
    assert not noted(model="uhkd/resnet10", options=CNN, start="random")


def test_a_module_is_not_its_own_teacher(tmp_path: Path):
    module = Net()
    with pytest.raises(ValueError, match="teacher and student share weights"):
        uhkd.distill(**pupil("", tmp_path / "run", method="kd") | {"teacher": module, "student": module})
    assert all(p.requires_grad for p in module.parameters())


def test_a_teacher_without_head_or_embedding_is_refused(tmp_path: Path):
    class Maps(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)).mean((2, 3)).softmax(1)[:, :7] * 1.0

    network = wrap_module(Maps(), num_classes=None, image_size=8, levels=["first", "second"])
    assert network.shapes.embedding is None
    with pytest.raises(ValueError, match=r"head does not fit .* has no embedding for a linear probe; finetune it"):
        uhkd.distill(**pupil("", tmp_path / "run") | {"teacher": network})


# resuming


def test_resuming_a_finished_run_says_so_and_returns_it(
    teacher: uhkd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = pupil(teacher, tmp_path / "run", method="kd")
    done = uhkd.distill(**words)
    before = {p.name: p.read_bytes() for p in done.run.path.iterdir()}
    own = Net()
    tuned = uhkd.finetune(model=own, out=tmp_path / "own", **TINY | {"epochs": 1})
    weights = {k: v.clone() for k, v in own.state_dict().items()}
    capsys.readouterr()
    monkeypatch.setattr(fit, "Trainer", _never)
    monkeypatch.setattr(setup, "prepare_teachers", _never)
    again = uhkd.distill(**words, resume=True)
    assert "is finished" in capsys.readouterr().err
    assert again.metrics == done.metrics and again.run.path == done.run.path
    assert not again.student.training
    state = again.student.module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in done.student.module.state_dict().items())
    assert {p.name: p.read_bytes() for p in done.run.path.iterdir()} == before

    torch.manual_seed(5)
    fresh = Net()
    result = uhkd.finetune(model=fresh, out=tmp_path / "own", resume=True, **TINY | {"epochs": 1})
    assert result.student.module is fresh and result.metrics == tuned.metrics
    assert all(torch.equal(v, weights[k]) for k, v in fresh.state_dict().items())
    with pytest.raises(ValueError, match="epochs was 1, now 2"):
        uhkd.distill(**words | {"epochs": 2}, resume=True)


def test_resuming_with_another_recipe_names_the_fields(
    teacher: uhkd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = pupil(teacher, tmp_path / "run", method="kd", checkpoint_minutes=1e-9)
    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "follow", stopping(2))
        with pytest.raises(Stop):
            uhkd.distill(**words)
    with pytest.raises(ValueError, match=r"another recipe: lr was 0\.001, now 0\.01, seed was 0, now 2; give"):
        uhkd.distill(**words | {"lr": 0.01, "seed": 2}, resume=True)
    checkpoint = RunFolder(tmp_path / "run").read_checkpoint()
    assert checkpoint is not None and checkpoint.step == 2
    with pytest.raises(ValueError, match="add --resume to resume it"):
        uhkd.distill(**words)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo's and inductor's own, which differ by version
def test_a_compiled_training_is_the_same_training(tmp_path: Path):
    """torch.compile rounds in other places, and nothing else; it resumes and leaves plain weights."""
    words = {"model": "uhkd/resnet10", "options": {"channels": [8, 12, 16, 24]}, "data": "digits", "train_limit": 100}
    words |= {"image_size": 16, "batch_size": 20, "epochs": 2, "precision": "fp32", "device": "cpu", "workers": 0}
    plain, compiled = (uhkd.finetune(**words, compile=c, out=tmp_path / str(c)) for c in (False, True))
    assert compiled.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-3)
    assert uhkd.load_run(tmp_path / "True").shapes == plain.student.shapes
