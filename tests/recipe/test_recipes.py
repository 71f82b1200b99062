"""Packaged recipes: complete, explained, true to their source, able to train; and the verb that lists and compares them."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from uhkd.__main__ import main
from uhkd.commands.recipes import header, kind_of, recipes
from uhkd.commands.train import distill, finetune
from uhkd.models import create
from uhkd.recipe import DistillRecipe, FinetuneRecipe, RecipeError, build, find_recipe, load_yaml, recipe_names
from uhkd.recipe.arguments import RecipesArguments
from uhkd.runs import RunFolder

# recipes of comparisons are tested with the verb that runs them
WORDS = {name: words for name in recipe_names() if "pairs" not in (words := load_yaml(find_recipe(name)))}
CORRECTED = "cifar100/ofa-protocol-corrected/"

CNNS, OTHERS = ("resnet18", "mobilenetv2"), ("deit-t", "swin-p")
CIFAR_PAIRS = [f"{t}--{s}" for t in ("swin-t", "vit-s", "mixer-b16") for s in CNNS]
CIFAR_PAIRS += [f"{t}--{s}" for t in ("convnext-t", "mixer-b16") for s in OTHERS]
CIFAR_PAIRS += [f"{t}--resmlp-s12" for t in ("convnext-t", "swin-t")]
IMAGENET_PAIRS = [f"{t}--{s}" for t in ("deit-t", "swin-t", "mixer-b16") for s in CNNS]
IMAGENET_PAIRS += [f"{t}--{s}" for t in ("resnet50", "convnext-t", "mixer-b16") for s in ("deit-t", "swin-n")]
IMAGENET_PAIRS += [f"{t}--resmlp-s12" for t in ("resnet50", "convnext-t", "swin-t")]

# OFA-KD: configs/cifar/cnn.yaml, cifar/vit_mlp.yaml, imagenet/cnn.yaml, imagenet/vit_mlp.yaml; the batch is theirs times
# eight devices; warmup_lr of the CNNs, crop_scale and precision are defaults of their train.py
_AUG = {"randaugment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}
_ADAMW = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05, "schedule": "cosine", "clip_grad": 5.0}
_ADAMW |= {"warmup_epochs": 20, "warmup_lr": 5e-7, "label_smoothing": 0.1, "batch_size": 1024, "epochs": 300}
_SGD = {"optimizer": "sgd", "momentum": 0.9, "warmup_epochs": 3, "warmup_lr": 1e-4, "label_smoothing": 0.1}
_SGD |= {"color_jitter": 0.0, "clip_grad": None}
_ALL = {"image_size": 224, "crop": "resized", "crop_scale": 0.08, "flip": True}
OFA = {
    "cifar100/cnn": _ALL
    | _SGD
    | {"epochs": 300, "batch_size": 1024, "lr": 0.05, "min_lr": 1e-3, "weight_decay": 2e-3, "schedule": "cosine"}
    | {"precision": "fp32"},
    "cifar100/vit_mlp": _ALL | _ADAMW | _AUG | {"min_lr": 1e-5, "precision": "fp32"},
    "imagenet/cnn": _ALL
    | _SGD
    | {"epochs": 100, "batch_size": 512, "lr": 0.1, "weight_decay": 1e-4}
    | {"schedule": "step", "step_epochs": [30, 60, 90], "step_gamma": 0.1},
    "imagenet/vit_mlp": _ALL | _ADAMW | _AUG | {"min_lr": 1e-6, "ema_decay": 0.99996},
}
STUDENTS = {
    "resnet18": "timm/resnet18",
    "mobilenetv2": "timm/mobilenetv2_100",
    "deit-t": "timm/deit_tiny_patch16_224",
    "resmlp-s12": "timm/resmlp_12_224",
    "swin-p": "timm/swin_tiny_patch4_window7_224",
    "swin-n": "timm/swin_tiny_patch4_window7_224",
}
# what belongs to the data, the pair and our tool; everything else in those recipes must stand in OFA's table
OWN = {"data", "val_fraction", "teacher", "teacher_start", "student", "student_options", "eval_every"}


def protocol(folder: str) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in WORDS if name.rpartition("/")[0] == folder)


def out_of(name: str) -> str:
    """The run folder that a recipe's command writes."""
    command = " ".join(line for line in header(find_recipe(name)) if line.startswith("  uhkd "))
    return command.split("--out ")[1].split()[0]


MADE = {
    out_of(name): name for name, words in WORDS.items() if kind_of(words) == "finetune"
}  # run folder -> recipe of that teacher


@pytest.mark.parametrize("name", WORDS)
def test_a_recipe_builds_and_explains_itself(name: str):
    words, lines = WORDS[name], header(find_recipe(name))
    kind = kind_of(words)
    build(DistillRecipe if kind == "distill" else FinetuneRecipe, words)
    assert 20 < len(lines[0]) <= 110 and lines[0].endswith(".")
    commands = [line for line in lines if line.startswith("  uhkd ")]
    assert len(commands) == 1 and commands[0].startswith(f"  uhkd {kind} -c {name} ") and " --out runs/" in commands[0]
    for part in ("Source: ", "Hardware: ", "Result: "):
        assert sum(line.startswith(part) for line in lines) == 1, part
    text = " ".join(line.strip() for line in lines)
    assert "Time" in text and re.search(r"Result: (not yet run\.|docs/results\.md)", text)
    # the method is the user's choice
    assert "method" not in words and "seed" not in words and "out" not in words


def test_pairs_are_complete():
    teachers = [f"teacher-{name}" for name in ("swin-t", "vit-s", "mixer-b16", "convnext-t")]
    assert len(set(CIFAR_PAIRS)) == 12 and len(set(IMAGENET_PAIRS)) == 15
    assert protocol("cifar100/ofa-protocol") == sorted(CIFAR_PAIRS + teachers)
    assert protocol("cifar100/ofa-protocol-corrected") == sorted(CIFAR_PAIRS + teachers)
    assert protocol("imagenet") == sorted(IMAGENET_PAIRS)


def test_students_name_a_teacher_that_a_recipe_makes():
    students = {name: words for name, words in WORDS.items() if words.get("teacher", "").startswith("runs/")}
    assert len(students) > 30
    for name, words in students.items():
        teacher = MADE[words["teacher"]]
        assert f"the recipe {teacher}" in " ".join(header(find_recipe(name)))
        # what the student holds out, its teacher has not seen either
        assert words.get("val_fraction") == WORDS[teacher].get("val_fraction"), name
        if "--" in name:
            assert teacher == f"{name.rpartition('/')[0]}/teacher-{name.rpartition('/')[2].split('--')[0]}"


@pytest.mark.parametrize(
    "name", [*(f"cifar100/ofa-protocol/{p}" for p in CIFAR_PAIRS), *(f"imagenet/{p}" for p in IMAGENET_PAIRS)]
)
def test_released_settings_are_those_of_ofa(name: str):
    words, short = WORDS[name], name.rpartition("--")[2]
    table = OFA[f"{name.split('/')[0]}/{'cnn' if short in CNNS else 'vit_mlp'}"]
    assert {key: value for key, value in words.items() if key not in OWN} == table
    assert words["student"] == STUDENTS[short]
    # their swin_pico and swin_nano; drop path: timm's default for CIFAR-100, switched off by the ImageNet settings
    swin = {"swin-p": (48, 0.1), "swin-n": (64, 0.0)}.get(short)
    options = dict(zip(("embed_dim", "drop_path_rate"), swin, strict=True)) if swin else {}
    options |= {"depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16]} if swin else {}
    assert words.get("student_options", {}) == options


def test_corrections_are_few_and_explained():
    for pair in CIFAR_PAIRS:
        name = f"{CORRECTED}{pair}"
        before, after = WORDS[f"cifar100/ofa-protocol/{pair}"], WORDS[name]
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        more = {"lr", "weight_decay"} if pair.endswith("resnet18") else set()
        assert changed == {"val_fraction", "teacher", "precision"} | more
        reasons = [line for line in header(find_recipe(name)) if line.startswith(("Changed: ", "Kept: "))]
        assert len(reasons) == (2 if pair.endswith(OTHERS) or pair.endswith("resmlp-s12") else 3)


# --- two steps of training -------------------------------------------------------------------------------------------


METHODS = {name: ("uhkd", "kd", "scratch")[i % 3] for i, name in enumerate(WORDS) if kind_of(WORDS[name]) == "distill"}


def teacher_of(words: dict[str, Any]) -> dict[str, Any]:
    """The recipe that trains a student's teacher, or as much of one as a teacher by name needs."""
    return WORDS[MADE[words["teacher"]]] if words["teacher"] in MADE else {"model": words["teacher"], "image_size": 224}


FEW = [name for name in WORDS if name.startswith("cifar100/32px/") and "/large/" not in name] + [
    "imagenet/resnet50--deit-t"
]
SWEEP = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in WORDS]


def classes_of(name: str) -> int:
    return {"digits": 10, "cifar100": 100, "imagenet": 1000}[name.split("/")[0]]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of 10, 100 and 1000 classes: four training and four validation images of noise, 32x32."""
    folder = tmp_path_factory.mktemp("recipes")
    rng = np.random.default_rng(0)
    for classes in (10, 100, 1000):
        parts: dict[str, Any] = {"classes": [f"class {i}" for i in range(classes)]}
        for part in ("train", "val"):
            parts[f"{part}_images"] = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
            parts[f"{part}_labels"] = np.arange(4)
        np.savez(folder / f"{classes}.npz", **parts)
    return folder


def shrunk(words: dict[str, Any], data: Path) -> dict[str, Any]:
    """The recipe as two steps on four images, at 64 px where it says 224; everything else as it stands."""
    change: dict[str, Any] = {"data": str(data), "epochs": 2, "batch_size": 4, "eval_every": 2, "train_limit": None}
    change["warmup_epochs"] = min(words.get("warmup_epochs", 0), 1)
    change |= {"step_epochs": [1]} if "step_epochs" in words else {}
    change |= {"image_size": 64} if words.get("image_size") == 224 else {}
    return words | change


def untrained_teacher(words: dict[str, Any], classes: int, rooms: Path) -> Path:
    """A run folder with random weights of the recipe's teacher, for images of 64 px where it is made for 224."""
    own = teacher_of(words)
    size = 64 if own.get("image_size") == 224 else own.get("image_size")
    folder = RunFolder(rooms / re.sub(r"\W", "-", f"{own['model']}-{own.get('options')}-{classes}"))
    if not folder.has_model():
        network = create(own["model"], num_classes=classes, image_size=size, options=own.get("options"))
        folder.path.mkdir()
        folder.write_model(network.config.to_json(), network.module.state_dict())
    return folder.path


@pytest.mark.parametrize("name", SWEEP)
def test_a_recipe_takes_two_steps(name: str, rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("uhkd.training.fit.draw", lambda _: [])
    classes = classes_of(name)
    words = shrunk(WORDS[name], rooms / f"{classes}.npz") | {"out": str(tmp_path / "run")}
    if name not in METHODS:
        result = finetune(build(FinetuneRecipe, words | {"start": "random"}))
    else:
        words |= {"method": METHODS[name], "teacher_start": None, "allow_weak_teacher": True}
        scratch = METHODS[name] == "scratch"
        words["teacher"] = None if scratch else str(untrained_teacher(words, classes, rooms))
        result = distill(build(DistillRecipe, words))
    assert result.metrics["step"] == 2 and all(map(math.isfinite, result.metrics.values()))
    assert result.student.shapes.logits == classes


# --- the verb --------------------------------------------------------------------------------------------------------


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str]):
    assert recipes() == recipe_names()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["recipe", "command"]
    folder, listed = "", []
    for line in lines[1:]:
        folder, listed = (folder, [*listed, folder + line.split()[0]]) if line[0] == " " else (line, listed)
    assert sorted(listed) == recipe_names()
    row = next(line for line in lines if line.startswith("  teacher-resnet10 "))
    assert row.split()[1:3] == ["finetune", "uhkd/resnet10"] and row.endswith(
        header(find_recipe("cifar100/32px/teacher-resnet10"))[0]
    )


def test_one_name_shows_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    text = find_recipe("digits/vit").read_text()
    assert recipes(names=("digits/vit",)) == text and capsys.readouterr().out == text
    (tmp_path / "own.yaml").write_text("# [bold]mine[/bold]\nmodel: m")
    assert recipes(names=(tmp_path / "own.yaml",)) == "# [bold]mine[/bold]\nmodel: m"
    assert capsys.readouterr().out == "# [bold]mine[/bold]\nmodel: m\n"


def test_two_names_show_the_keys_that_differ(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    found = recipes(RecipesArguments(names=("digits/vit", "digits/mlp")))
    assert found == {
        "student": ("uhkd/vit_micro", "uhkd/mixer_micro"),
        "student_options": (WORDS["digits/vit"]["student_options"], {"embed_dim": 64}),
    }
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["key", *found]
    assert recipes(names=("digits/vit", "digits/vit")) == {}
    assert capsys.readouterr().out == "digits/vit and digits/vit are the same\n"


def test_differences_are_those_of_the_resolved_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    # a default written out is no difference; a rate left to the optimiser counts as its number
    (tmp_path / "a.yaml").write_text("student: s\noptimizer: adamw\n")
    (tmp_path / "b.yaml").write_text("student: s\nlr: 1e-3\nepochs: 7\ndata: d\nflip: true\n")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    assert recipes(names=(a, b)) == {"epochs": (None, 7), "flip": (None, True), "data": ("-", "d")}
    assert re.search(r"^flip +null +true$", capsys.readouterr().out, re.MULTILINE)
    # kinds may differ, and a run folder stands for its recipe
    run = tmp_path / "run"
    run.mkdir()
    words = build(FinetuneRecipe, WORDS["digits/teacher"]).resolved().model_dump(mode="json")
    (run / "recipe.yaml").write_text(yaml.safe_dump(words))
    assert recipes(names=("digits/teacher", str(run))) == {}
    found = recipes(names=("digits/vit", str(run)))
    assert isinstance(found, dict)
    assert found["student"] == ("uhkd/vit_micro", "-") and found["model"] == ("-", "uhkd/resnet10")


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["recipes", "digits/vti"]) == 2
    assert "did you mean 'digits/vit'" in capsys.readouterr().err
    assert main(["recipes", "a", "b", "c"]) == 2
    assert "expected no name (list), one (show) or two (compare), found 3" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("student: s\nepocs: 3\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml: epocs: unknown key; did you mean 'epochs'"):
        recipes(names=("digits/vit", tmp_path / "bad.yaml"))


def test_the_list_ends_quietly_when_its_reader_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["recipes"]) == 141
    assert capsys.readouterr().err == ""
