"""A newcomer's first ten minutes, in-process and on real files: the path that works, and each mistake in one clear line."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from uhkd.__main__ import main

TINY = ["--image-size", "16", "--epochs", "1", "--batch-size", "16", "--precision", "fp32"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Real images as a person keeps them: one folder a class, PNG files, nothing else prepared."""
    root = tmp_path_factory.mktemp("images")
    images, labels = load_digits(return_X_y=True)
    for name, label in (("zero", 0), ("one", 1), ("four", 4)):
        (root / name).mkdir()
        for i, image in enumerate(images[labels == label][:40]):
            pixels = (image.reshape(8, 8) * 15.9).astype(np.uint8)
            Image.fromarray(pixels).resize((20 + i % 3, 20)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """A teacher trained by the command line."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    words = [
        "--model",
        "uhkd/mixer_micro",
        "--data",
        str(digits),
        *TINY,
        "--epochs",
        "15",
        "--lr",
        "0.003",
        "--out",
        str(out),
    ]
    assert main(["finetune", *words]) == 0
    return out


def refused(capsys, *argv):
    """The complaint about a command line: exit code 2, stderr only, no trace."""
    assert main([str(a) for a in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert len(err.split("error: ")[1].splitlines()) <= 6
    return err.split("error: ")[1]


def test_the_path_that_works(digits, teacher, tmp_path, capsys):
    out = tmp_path / "student"
    words = [
        "--teacher",
        str(teacher),
        "--student",
        "timm/test_vit",
        "--data",
        str(digits),
        "--method",
        "uhkd",
        "--seed",
        "1",
    ]
    assert (
        main(
            [
                "distill",
                *words,
                "--image-size",
                "32",
                "--student-options",
                "patch_size=8",
                "--epochs",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    said = "".join(capsys.readouterr())
    assert "batch size 16 chosen from 96 training images: 6 optimiser steps" in said
    assert "teacher" in said and "scratch    not run" in said and "uhkd.load_run" in said
    for name in ("recipe.yaml", "environment.json", "metrics.csv", "model.safetensors", "card.json", "result.json"):
        assert (out / name).stat().st_size > 0
    for name in ("curves.png", "spectra.png", "cka.png"):
        with Image.open(out / name) as picture:
            assert picture.size[0] > 300
    assert main(["eval", str(out), "--data", str(digits)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["predict", str(out), str(digits / "zero"), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40 and all("%" in line for line in lines)
    assert "already exists" in refused(capsys, "distill", *words, "--out", out)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--teacher", "timm/resnet81"], "resnet"),
        (["--student", "timm/vit_tinny_patch16_224"], "vit_tiny_patch16_224"),
        (["--method", "uhdk"], "did you mean 'uhkd'"),
        (["--settings", "radius=two"], "radius"),
        (["--settings", "radios=2"], "did you mean 'radius'"),
        (["--settings", "form=phase"], "pairs"),
        (["--weights", "featurs=3"], "did you mean 'features'"),
        (
            ["--batch-size", "5000"],
            "the 96 images of the training split; use --batch-size 24, or another one up to 96",
        ),
        (["--seeed", "3"], "did you mean '--seed'"),
        (["--image-size", "2"], "image_size: expected one side, or height and width, of 4 or more pixels, found ['2']"),
        (["--student", "timm/test_vit", "--image-size", "20"], "20"),
        (["--device", "cuda"], "no GPU"),
        (["--teacher-levels", "nope"], "nope"),
        (["--student-levels", "0", "--settings", "radius=1"], "at least two matched levels"),
    ],
)
def test_a_mistake_in_distill_is_told_in_one_line(flags, said, digits, teacher, tmp_path, capsys):
    import torch

    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = {"--teacher": teacher, "--student": "uhkd/vit_micro", "--data": digits, "--out": tmp_path / "run"}
    words |= dict(
        zip(["--image-size", "--epochs", "--batch-size", "--precision"], ["16", "1", "16", "fp32"], strict=True)
    )
    words |= dict([flags[:2]] + ([flags[2:]] if flags[2:] else []))
    assert said in refused(capsys, "distill", *(w for pair in words.items() for w in pair))
    assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"


def test_an_untrained_teacher_is_refused_with_the_way_out(digits, tmp_path, capsys):
    words = [
        "--teacher",
        "uhkd/resnet10",
        "--teacher-start",
        "random",
        "--student",
        "uhkd/vit_micro",
        "--data",
        digits,
        *TINY,
    ]
    said = refused(capsys, "distill", *words, "--teacher-head", "keep", "--out", tmp_path / "a")
    assert "does not fit" in said or "chance level" in said
    untrained = tmp_path / "teacher"
    finetune = [
        "finetune",
        "--model",
        "uhkd/vit_micro",
        "--data",
        str(digits),
        *TINY,
        "--lr",
        "1e-9",
        "--out",
        str(untrained),
    ]
    assert main(finetune) == 0
    capsys.readouterr()
    words = ["--teacher", untrained, "--student", "uhkd/vit_micro", "--data", digits, *TINY, "--out", tmp_path / "b"]
    said = refused(capsys, "distill", *words)
    assert "chance level" in said and "uhkd finetune" in said and "--allow-weak-teacher" in said


def test_a_teacher_with_other_classes_gets_a_linear_probe(digits, teacher, tmp_path, capsys):
    fewer = tmp_path / "two"
    for name in ("zero", "one"):
        shutil.copytree(digits / name, fewer / name)
    out = tmp_path / "run"
    words = ["--teacher", str(teacher), "--student", "uhkd/vit_micro", "--data", str(fewer), *TINY, "--out", str(out)]
    assert main(["distill", *words, "--method", "kd"]) == 0
    said = capsys.readouterr().err
    assert "linear probe" in said and "it has 3 classes, the data 2" in said
    assert (out / "teacher_probe.safetensors").is_file()


def test_mistakes_in_the_data_are_named(digits, tmp_path, capsys):
    def finetune(folder):
        return refused(
            capsys, "finetune", "--model", "uhkd/vit_micro", "--data", folder, *TINY, "--out", tmp_path / "run"
        )

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in finetune(empty)
    one = tmp_path / "one"
    shutil.copytree(digits / "zero", one / "zero")
    assert "one class" in finetune(one) or "at least 2 classes" in finetune(one)
    hollow = tmp_path / "hollow"
    shutil.copytree(digits, hollow)
    (hollow / "nothing").mkdir()
    assert "nothing" in finetune(hollow)
    bad = tmp_path / "bad"
    shutil.copytree(digits, bad)
    (bad / "zero" / "7.png").write_bytes(b"not an image")
    said = finetune(bad)
    assert "7.png" in said and "--skip-bad-images" in said
    words = [
        "--model",
        "uhkd/vit_micro",
        "--data",
        str(bad),
        *TINY,
        "--skip-bad-images",
        "--out",
        str(tmp_path / "skipped"),
    ]
    assert main(["finetune", *words]) == 0
    assert "7.png" in capsys.readouterr().err


def test_eval_and_predict_mistakes(digits, teacher, tmp_path, capsys):
    assert "no such folder" in refused(capsys, "eval", tmp_path / "nothing")
    other = tmp_path / "other"
    shutil.copytree(digits / "zero", other / "seven")
    shutil.copytree(digits / "one", other / "eight")
    assert "seven" in refused(capsys, "eval", teacher, "--data", other)
    assert "no test split" in refused(capsys, "eval", teacher, "--split", "test")
    assert "no such file" in refused(capsys, "predict", teacher, tmp_path / "x.png")


def test_inspect_shows_levels_and_takes_a_step(capsys):
    pair = ["--teacher", "uhkd/resnet10", "--student", "uhkd/vit_micro", "--image-size", "16", "--num-classes", "4"]
    assert main(["inspect", *pair, "--settings", "form=pairs"]) == 0
    out = capsys.readouterr().out
    assert "matched levels" in out and "uhkd.features" in out and "ce " in out
    assert "did you mean 'uhkd'" in refused(capsys, "inspect", *pair, "--method", "uhk")
