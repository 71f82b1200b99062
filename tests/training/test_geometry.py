"""Sizes of loaded images, notes about their shape, and one preprocessing for a run from training to export."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import uhkd
from uhkd.__main__ import main
from uhkd.cache import Manifest, RecordFormat, TeacherCache
from uhkd.data import Augmentation, eval_loader, open_data
from uhkd.data.decode import decode_file
from uhkd.data.resize import fit_image
from uhkd.features import OutputShapes
from uhkd.models import create
from uhkd.training.inputs import image_size

WORDS = {"device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 8, "epochs": 1, "flip": False}
SHAPES = OutputShapes((), None, 2)
SMALL = {"channels": [4, 4, 8, 8]}


def net(*size):
    return create("uhkd/resnet10", num_classes=3, image_size=size, options=SMALL, levels=0)


@pytest.mark.parametrize(
    ("resize", "native", "networks", "expected"),
    [
        ("crop", None, [(32, 32), (224, 224)], (224, 224)),
        ("crop", (32, 32), [(224, 224)], (32, 32)),
        ("crop", (8, 8), [(16, 16), (24, 24)], (8, 8)),
        ("crop", None, [(96, 224), (224, 224)], (147, 342)),  # the student's shape, the teacher's area
        ("crop", (100, 200), [(224, 224)], (100, 100)),  # as `predict` cuts it
        ("squash", (100, 200), [(224, 224)], (100, 200)),
        ("pad", (100, 200), [(224, 224)], (200, 200)),
        ("pad", (100, 400), [(64, 64)], (64, 64)),
    ],
)
def test_images_have_the_shape_of_the_trained_network(resize, native, networks, expected):
    data = replace(open_data("digits"), native_size=native, resize=resize)
    assert image_size(data, [net(*size) for size in networks]) == expected


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Wide pictures, no two of one size, whose class is shown at the left edge only."""
    folder = tmp_path_factory.mktemp("wide")
    generator = np.random.default_rng(0)
    for label in range(3):
        (folder / str(label)).mkdir()
        for i in range(8):
            pixels = generator.integers(0, 60, (40 + i, 150 - i, 3), np.uint8)
            pixels[:, :25, label] += 150
            Image.fromarray(pixels).save(folder / str(label) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def squashed(wide, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "squashed"
    words = WORDS | {"image_size": (24, 48), "resize": "squash", "options": SMALL, "data": str(wide), "out": str(out)}
    uhkd.finetune(model="uhkd/resnet10", **words)
    return out


@pytest.mark.slow
def test_a_run_predicts_evaluates_and_exports_with_its_own_resize(squashed, wide):
    network = uhkd.load_run(squashed)
    assert (network.config.image_size, network.config.resize) == ((24, 48), "squash")
    file = wide / "0" / "0.png"
    image = fit_image(decode_file(file), (24, 48), "squash").float().div(255)[None]
    with torch.no_grad():
        expected = network(image).logits.softmax(1)[0]
    found = dict(uhkd.predict(run=str(squashed), images=[str(file)])[str(file)])
    assert [found[str(k)] for k in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert main(["export", str(squashed), "--to", "pt2"]) == 0
    card = (squashed / "export" / "pt2" / "README.md").read_text()
    assert "resized to 24 x 48, whatever their shape" in card
    assert "image.resize((48, 24), Image.Resampling.BICUBIC)" in card


def test_evaluation_uses_the_resize_of_the_run(squashed, wide, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "uhkd.training.run_evaluation.eval_loader",
        lambda *args, **options: seen.append((args[1], options["resize"])) or eval_loader(*args, **options),
    )
    uhkd.evaluate(run=str(squashed))
    assert seen == [((24, 48), "squash")]


def test_all_images_of_other_data_without_parts_are_measured(squashed, wide, tmp_path, capsys):
    other = shutil.copytree(wide, tmp_path / "other")
    (other / "0" / "0.png").unlink()

    def measured(**options):
        metrics = uhkd.evaluate(run=str(squashed), device="cpu", **options)
        return sum(map(sum, metrics["confusion"])), " ".join(capsys.readouterr().err.split())

    assert measured(data=str(other)) == (23, "all images are measured, because the run was trained on other data")
    assert measured(data=str(other), split="all") == (23, "")
    parts = shutil.copytree(other, tmp_path / "parts" / "train")
    shutil.copytree(other / "1", tmp_path / "parts" / "test" / "1")
    assert measured(data=str(parts.parent))[0] == len(list((other / "1").iterdir()))  # the test part alone
    assert measured(data=str(other), split="val") == (5, "")  # one image less of a class
    assert measured() == measured(data=str(wide)) == (6, "")
    copy = shutil.copytree(wide, tmp_path / "copy")
    assert measured(data=str(copy)) == (6, "")  # the images of the training in another place
    few = tmp_path / "few" / "1"
    few.mkdir(parents=True)
    for name in ("0.png", "1.png"):
        shutil.copy(other / "1" / name, few)
    assert measured(data=str(few.parent))[0] == 2  # of one class
    shutil.copytree(few, few.parent / "0")
    (few / "0.png").unlink()
    assert measured(data=str(few.parent))[0] == 3  # one of a class
    count, said = measured(split="all")
    assert count == 24 and "the network was trained on these images" in said


def test_a_run_without_resize_on_its_card_is_one_of_crops(squashed, tmp_path):
    card = json.loads((squashed / "card.json").read_text())
    assert card.pop("resize") == "squash"
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "model.safetensors").write_bytes((squashed / "model.safetensors").read_bytes())
    assert uhkd.load_run(tmp_path).config.resize == "crop"


def test_notes_on_crops_and_on_another_resize(squashed, wide, tmp_path, capsys):
    words = WORDS | {"data": str(wide), "student": "uhkd/resnet10", "student_options": SMALL, "image_size": 32}
    words |= {"teacher": str(squashed), "method": "kd", "allow_weak_teacher": True}
    uhkd.commands.plan_training(uhkd.recipe.build(uhkd.recipe.DistillRecipe, words))
    said = " ".join(capsys.readouterr().err.split())
    assert re.search("crop to 34x34 discards (69|70|71)% of the area of a typical image: --resize squash or pad", said)
    assert f"{squashed} was trained with resize squash, this run uses crop (--resize)" in said
    assert "have another shape than the input of uhkd/resnet10, 24x48, which stretches them" in said
    uhkd.commands.plan_training(uhkd.recipe.build(uhkd.recipe.DistillRecipe, words | {"resize": "squash"}))
    said = capsys.readouterr().err
    assert "discards" not in said and "stretches" not in said and "was trained with" not in said


@pytest.mark.slow
def test_a_cache_keeps_its_resize_and_a_training_takes_it(squashed, wide, tmp_path):
    cache = tmp_path / "cache"
    words = {k: v for k, v in WORDS.items() if k != "epochs"} | {"data": str(wide), "allow_weak_teacher": True}
    uhkd.cache(teacher=str(squashed), out=str(cache), views=1, resize="squash", crop="none", **words)
    manifest = TeacherCache(cache).manifest
    assert manifest.augmentation.resize == manifest.identity["view resize"] == "squash"
    options = {"student": "uhkd/resnet10", "student_options": SMALL, "image_size": (24, 48), "method": "kd"}
    words = {k: v for k, v in WORDS.items() if k != "flip"} | options | {"data": str(wide), "teacher_cache": str(cache)}
    run = uhkd.distill(**words, out=str(tmp_path / "run")).run
    assert run.read_recipe()["resize"] == run.read_config()["resize"] == "squash"
    with pytest.raises(ValueError, match="view resize: the cache has 'squash', expected 'pad'"):
        uhkd.distill(**words, resize="pad", out=str(tmp_path / "other"))


def test_the_key_of_a_cache_of_crops_is_that_of_caches_without_the_fact():
    manifest = Manifest(
        {"view size": [8, 8]}, 1, 1, RecordFormat(2, None, ()), Augmentation((8, 8)), 0, SHAPES, (), None, "t", {}, {}
    )
    facts = ({}, {"view resize": "crop"}, {"view resize": "pad"})
    old, crop, pad = (replace(manifest, identity=manifest.identity | fact).key for fact in facts)
    assert old == crop != pad


def test_a_network_of_one_channel_gets_the_luminance_and_can_be_exported(wide, tmp_path, capsys):
    words = WORDS | {"image_size": 32, "options": {"in_chans": 1}, "data": str(wide), "out": str(tmp_path / "grey")}
    uhkd.finetune(model="timm/test_resnet", start="random", **words)
    network = uhkd.load_run(tmp_path / "grey")
    assert network.grey and any("takes one channel" in note for note in network.notes)
    grey = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (network.mean, network.std))
        expected = network.module((weights * (grey - mean) / std).sum(1, keepdim=True))
        assert torch.allclose(network(grey.repeat(1, 3, 1, 1)).logits, expected, atol=1e-5)
    assert main(["export", str(tmp_path / "grey"), "--to", "pt2"]) == 0
    assert main(["export", str(tmp_path / "grey"), "--to", "timm"]) == 2
    assert "takes one channel, which timm's own transforms do not make" in capsys.readouterr().err


def test_a_network_of_three_channels_is_not_grey():
    assert not create("uhkd/resnet10", num_classes=3, image_size=(16, 32), options=SMALL).grey


def test_views_of_a_wide_folder_differ_by_resize(wide):
    source = open_data(str(wide)).train
    images = {
        r: next(iter(eval_loader(source, (16, 16), batch_size=4, resize=r))).image for r in ("crop", "squash", "pad")
    }
    assert (images["squash"].amax((1, 2, 3)) > images["crop"].amax((1, 2, 3)) + 0.2).all()
    again = next(
        iter(eval_loader(source, (16, 16), batch_size=4, augmentation=Augmentation((16, 16), resize="pad")))
    ).image
    assert torch.equal(again, images["pad"])
