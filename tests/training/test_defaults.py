"""Options that a recipe leaves open: chosen from the data and the network, said, and kept when a run is resumed."""

import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from PIL import Image

import uhkd
from uhkd.errors import UhkdError
from uhkd.models import offers_pretrained, save
from uhkd.recipe import DistillRecipe, FinetuneRecipe, build
from uhkd.runs import RunFolder
from uhkd.training.defaults import choose_length, choose_start, default_length
from uhkd.training.setup import prepare

OPEN = {"model": "uhkd/resnet10", "data": "digits"}
TINY: dict[str, Any] = OPEN | {"train_limit": 40, "image_size": 16, "device": "cpu", "precision": "fp32"}
TINY |= {"options": {"channels": [4, 4, 8, 8]}, "workers": 0, "thumbnails": False}


def chosen(images: int, processes: int = 1, **words: Any) -> FinetuneRecipe:
    return choose_length(build(FinetuneRecipe, OPEN | words), images, processes)


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [
        (20, 5, 160),
        (200, 16, 160),
        (600, 16, 53),
        (2000, 64, 64),
        (9000, 128, 30),
        (50_000, 128, 30),
        (1_300_000, 128, 30),
    ],
)
def test_batch_and_epochs_follow_the_number_of_images(images: int, batch: int, epochs: int):
    assert default_length(images) == (batch, epochs)


def test_no_data_set_gets_few_steps_or_a_huge_batch():
    for images in [*range(2, 400), *range(400, 20_000, 37)]:
        batch, epochs = default_length(images)
        assert 2 <= batch <= 128 and 30 <= epochs <= 160 and batch <= max(2, images // 4)
        if images >= 64:
            assert epochs * (images // batch) >= min(600, 160 * images // 16 * 0.9), images


def test_each_number_given_rules_alone():
    assert (chosen(600, epochs=3).batch_size, chosen(600, epochs=3).epochs) == (16, 3)
    assert (chosen(600, batch_size=50).batch_size, chosen(600, batch_size=50).epochs) == (50, 53)
    assert chosen(600, batch_size=50, epochs=3, warmup_epochs=1).warmup_epochs == 1


@pytest.mark.parametrize("processes", [1, 3, 4])
@pytest.mark.parametrize("parts", [1, 5, 24])
@pytest.mark.parametrize("images", [600, 9000])
def test_a_chosen_batch_can_be_divided(images: int, parts: int, processes: int):
    batch = chosen(images, processes, grad_accum_steps=parts).batch_size
    assert batch % math.lcm(parts, processes) == 0 and batch // parts >= 2


def test_contradictions_with_chosen_numbers_are_refused():
    with pytest.raises(UhkdError, match=r"warmup_epochs: expected less than epochs \(53\), found 60"):
        chosen(600, warmup_epochs=60)
    with pytest.raises(UhkdError, match="increasing numbers from 1 to 52"):
        chosen(600, schedule="step", step_epochs=[80])
    with pytest.raises(UhkdError, match="multiple of the number of processes, 3"):
        chosen(600, 3, batch_size=16)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("timm/resnet18", True),
        ("resnet18", True),
        ("timm/test_vit", True),
        ("torchvision/resnet18", True),
        ("uhkd/resnet10", False),
        ("transformers/vit", False),
        ("transformers/owner/model", True),
    ],
)
def test_finetune_starts_from_pretrained_weights_where_there_are_some(name: str, offered: bool):
    assert offers_pretrained(name) == offered
    recipe = build(FinetuneRecipe, OPEN | {"model": name})
    assert choose_start(recipe, module=False).start == ("pretrained" if offered else "random")
    assert choose_start(recipe, module=True).start == "random"
    given = build(FinetuneRecipe, OPEN | {"model": name, "start": "random"})
    assert choose_start(given, module=False) is given


def test_a_resumed_run_keeps_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Also one of before, whose numbers are not those that would be chosen now."""
    run = uhkd.finetune(**TINY, epochs=1, batch_size=20, out=str(tmp_path / "run")).run
    again = uhkd.finetune(**TINY, out=str(run.path), resume=True)
    assert again.metrics["step"] == 2 and "is finished" in "".join(capsys.readouterr())
    with pytest.raises(UhkdError, match="epochs was 1, now 2"):
        uhkd.finetune(**TINY, epochs=2, out=str(run.path), resume=True)


def test_chosen_numbers_are_written_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uhkd.finetune(**TINY, epochs=1, out=str(tmp_path / "run"))
    assert "batch size 10 chosen from 40 training images: 4 optimiser steps" in "".join(capsys.readouterr())
    recipe = RunFolder(tmp_path / "run").read_recipe()
    assert (recipe["batch_size"], recipe["epochs"], recipe["warmup_epochs"], recipe["start"]) == (10, 1, 0.0, "random")


def share_of(folder: Path) -> float:
    return RunFolder(folder).read_recipe()["val_fraction"]


def test_the_share_of_held_out_images_is_recorded_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By a resumed training, a resumed cache and the trainings from it, also where another one would be chosen now."""
    data: dict[str, Any] = TINY | {"data": photos(tmp_path / "data", (16, 16), (16, 16), (16, 16))}
    fit = data | {"epochs": 1, "batch_size": 4, "train_limit": None}
    chosen, earlier = tmp_path / "chosen", tmp_path / "earlier"
    uhkd.finetune(**fit, out=str(chosen))
    uhkd.finetune(**fit, val_fraction=0.1, out=str(earlier))
    assert (share_of(chosen), share_of(earlier)) == (0.2, 0.1)
    uhkd.finetune(**fit, out=str(earlier), resume=True)
    assert "is finished" in "".join(capsys.readouterr())

    shared = {name: data[name] for name in ("data", "workers", "device", "precision")} | {"allow_weak_teacher": True}
    store = shared | {"teacher": str(earlier), "out": str(tmp_path / "cache"), "crop": "pad"}
    uhkd.cache(**store, views=1, val_fraction=0.1)
    uhkd.cache(**store, views=2)
    student = {"student": "uhkd/resnet10", "student_options": TINY["options"], "method": "kd", "image_size": 16}
    distill = shared | student | {"teacher": str(earlier), "epochs": 1, "batch_size": 4}
    uhkd.distill(**distill, teacher_cache=str(tmp_path / "cache"), out=str(tmp_path / "stored"))
    assert share_of(tmp_path / "cache") == share_of(tmp_path / "stored") == 0.1
    assert "was trained with val_fraction" not in "".join(capsys.readouterr())
    uhkd.distill(**distill, out=str(tmp_path / "live"))
    assert share_of(tmp_path / "live") == 0.2
    assert "the teacher was trained with val_fraction 0.1, this run has 0.2" in "".join(capsys.readouterr())


def photos(root: Path, *sizes: tuple[int, int]) -> str:
    """A folder of two classes with four images of each size, (width, height)."""
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i, size in enumerate(sizes * 4):
            Image.new("RGB", size, (40 * i % 256, 200, 90)).save(root / name / f"{i}.png")
    return str(root)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(500, 375), (375, 500), (64, 64)], 64),
        ([(64, 64)], 64),
        ([(63, 80)], 48),
        ([(200, 50)], 48),
        ([(40, 40)], 32),
        ([(10, 12)], 32),
    ],
)
def test_the_image_size_of_our_networks_follows_the_images(sizes: list[tuple[int, int]], side: int, tmp_path: Path):
    """Also that of a student, but for the size of its teacher; numbers given, run folders and weights files keep theirs."""
    words = TINY | {"data": photos(tmp_path / "data", *sizes), "train_limit": None, "epochs": 1, "batch_size": 4}
    del words["image_size"]
    small, large = (tmp_path / str(size) for size in (48, 128))
    for teacher in (small, large):
        network = uhkd.create("uhkd/resnet10", num_classes=2, image_size=int(teacher.name), options=TINY["options"])
        save(network, teacher)

    def used(**more: Any) -> int:
        return max(prepare(build(FinetuneRecipe, words | more), dry_run=True).learner.student.input_size)

    def used_by_student(**more: Any) -> int:
        model = {"student": words["model"], "student_options": words["options"], "method": "kd"}
        rest = {key: value for key, value in words.items() if key not in ("model", "options")}
        return max(prepare(build(DistillRecipe, rest | model | more), dry_run=True).learner.student.input_size)

    assert used() == used_by_student(teacher=str(large)) == used_by_student(method="scratch") == side
    for method in ("kd", "scratch"):
        assert used_by_student(teacher=str(small), method=method) == min(side, 48)
    assert used(image_size=36) == 36
    assert used(start=str(small / "model.safetensors")) == 32
    assert used(model=str(large), options={}) == 128


def test_without_network_finetune_never_starts_at_random_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    words = TINY | {"model": "timm/test_vit", "options": {}, "out": str(tmp_path / "run")}
    with pytest.raises(UhkdError, match=r"not available .* use start=random, a weights file"):
        uhkd.finetune(**words)
    assert not (tmp_path / "run").exists()


def test_distill_says_what_the_student_starts_from(capsys: pytest.CaptureFixture[str]):
    words = TINY | {"student": "timm/test_vit", "method": "scratch", "image_size": None}
    recipe = build(DistillRecipe, {name: word for name, word in words.items() if name not in ("model", "options")})
    prepare(recipe, dry_run=True)
    said = "student timm/test_vit: starts from random weights (--student-start pretrained or FILE: from trained ones)"
    assert said in "".join(capsys.readouterr())
