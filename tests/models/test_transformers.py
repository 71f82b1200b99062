"""Image classifiers of transformers as teachers and students: every family's contract, names, weights, objects, run folders."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import uhkd
from references.contracts import check_contract
from uhkd.models import create, load_run, model_names
from uhkd.training import fit

transformers = pytest.importorskip("transformers")

CLASSES = 10
TOKENS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {**TOKENS, "patch_size": 8}
DINO = {name: word for name, word in VIT.items() if name != "intermediate_size"}
PYRAMID: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
SWIN: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [2, 2, 4], "window_size": 4}
# family, image size, words of its configuration, maps (C, H, W)
FAMILIES: list[tuple[str, int, dict[str, Any], list[tuple[int, int, int]]]] = [
    ("vit", 32, VIT, [(32, 4, 4)] * 4),
    ("deit", 32, VIT, [(32, 4, 4)] * 4),
    ("beit", 32, VIT, [(32, 4, 4)] * 4),
    ("dinov2", 32, DINO, [(32, 4, 4)] * 4),
    ("dinov2_with_registers", 32, {**DINO, "num_register_tokens": 2}, [(32, 4, 4)] * 4),
    ("convnext", 64, PYRAMID | {"patch_size": 2}, [(8, 32, 32), (16, 16, 16), (24, 8, 8), (32, 4, 4)]),
    (
        "resnet",
        64,
        PYRAMID | {"embedding_size": 8, "layer_type": "basic"},
        [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)],
    ),
    (
        "regnet",
        64,
        PYRAMID | {"embedding_size": 8, "groups_width": 4},
        [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)],
    ),
    ("swin", 32, SWIN, [(16, 16, 16), (32, 8, 8), (64, 4, 4)]),
    ("swinv2", 32, SWIN, [(16, 16, 16), (32, 8, 8), (64, 4, 4)]),
    (
        "mobilevit",
        64,
        {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 32, 32, 64], "num_attention_heads": 2},
        [(16, 16, 16), (24, 8, 8), (32, 4, 4), (64, 2, 2)],
    ),
    ("mobilenet_v2", 64, {"depth_multiplier": 0.25}, [(8, 16, 16), (8, 8, 8), (24, 4, 4), (1280, 2, 2)]),
    ("poolformer", 64, PYRAMID, [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]),
    (
        "segformer",
        64,
        PYRAMID | {"num_attention_heads": [1, 1, 2, 2]},
        [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)],
    ),
    ("pvt", 64, PYRAMID | {"num_attention_heads": [1, 1, 2, 2]}, [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]),
    ("focalnet", 64, {"embed_dim": 8, "depths": [1, 1, 2, 1]}, [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]),
    ("clip", 32, {"vision_config": VIT, "text_config": TOKENS | {"vocab_size": 64}}, [(32, 4, 4)] * 4),
]
IDS = [row[0] for row in FAMILIES]
FAST = {"vit", "deit", "beit", "dinov2", "convnext", "resnet", "swin", "mobilevit"}
ROWS = [pytest.param(*row, id=row[0], marks=[] if row[0] in FAST else pytest.mark.slow) for row in FAMILIES]


def made(family: str, size: int, words: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create(f"transformers/{family}", num_classes=CLASSES, image_size=size, options=words)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.arange(4)


@pytest.mark.parametrize(("family", "size", "words", "maps"), ROWS)
def test_family(family: str, size: int, words: dict[str, Any], maps: list[tuple[int, int, int]]) -> None:
    """Shapes of the maps, logits bit-equal to the plain model's, gradients to the first layer, and a step on both sides."""
    tapped = made(family, size, words)
    assert list(tapped.shapes.maps) == maps
    assert tapped.shapes.logits == CLASSES
    assert tapped.shapes.embedding
    check_contract(tapped)
    x, y = batch(size)
    want = frozenset({"logits", "maps", "embedding"})
    with torch.no_grad():
        plain = tapped.module(pixel_values=(x - tapped._mean) / tapped._std).logits
        assert torch.equal(tapped(x, want).logits, plain)
    other = create("uhkd/resnet10", num_classes=CLASSES, image_size=16, options={"channels": [8, 8, 16, 16]})
    for teacher, student in ((tapped, "uhkd/vit_micro"), (other, made(family, size, words, 1))):
        for method in ("kd", "uhkd"):
            own = uhkd.Distillation(teacher, student, method=method, num_classes=CLASSES, image_size=16)
            own.calibrate([x])
            loss, terms = own(x, y)
            assert loss.isfinite(), terms
            loss.backward()
            grads = [p.grad for p in own.student.parameters() if p.requires_grad and p.ndim > 1 and p.numel()]
            assert grads[0] is not None and grads[0].abs().sum() > 0, "the first layer learns"
            assert all(g.isfinite().all() for g in grads if g is not None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of four named classes as save_pretrained writes it, with its image processor."""
    place = tmp_path_factory.mktemp("saved") / "vit"
    torch.manual_seed(3)
    names = dict(enumerate(["ant", "bee", "cat", "dog"]))
    config = transformers.ViTConfig(**VIT, image_size=32, id2label=names, label2id={v: k for k, v in names.items()})
    transformers.ViTForImageClassification(config).save_pretrained(place)
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    processor.save_pretrained(place)
    return place


def test_a_folder_brings_weights_classes_and_normalisation(folder: Path) -> None:
    tapped = create(f"transformers/{folder}", num_classes=None)
    assert tapped.config.name == "transformers/vit"
    assert tapped.config.classes == ("ant", "bee", "cat", "dog")
    assert (tapped.mean, tapped.std, tapped.input_size, tapped.interpolation) == (
        (0.4,) * 3,
        (0.3,) * 3,
        (32, 32),
        "bilinear",
    )
    plain = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    x, _ = batch(32)
    with torch.no_grad():
        assert torch.equal(tapped.eval()(x).logits, plain((x - 0.4) / 0.3).logits)


def test_as_a_student_its_head_is_new(folder: Path) -> None:
    tapped = create(f"transformers/{folder}", num_classes=7)
    assert tapped.shapes.logits == 7
    assert tapped.config.classes == ()
    assert "the body was loaded, the head for 7 classes starts at random" in tapped.notes[0]
    plain = create(f"transformers/{folder}", num_classes=None)
    body = {k: v for k, v in plain.module.state_dict().items() if not k.startswith("classifier.")}
    assert body
    assert all(torch.equal(tapped.module.state_dict()[name], tensor) for name, tensor in body.items())


def test_a_body_without_head_and_a_configuration_without_weights(folder: Path, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**VIT, image_size=32, num_labels=5)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "body")
    tapped = create(f"transformers/{tmp_path / 'body'}", num_classes=5)
    assert "has no head: the body was loaded" in " ".join(tapped.notes)
    assert "has no preprocessor_config.json: images are normalised as ImageNet's" in " ".join(tapped.notes)
    config.save_pretrained(tmp_path / "config")
    torch.manual_seed(0)
    one = create(f"transformers/{tmp_path / 'config'}", num_classes=5)
    torch.manual_seed(0)
    other = create("transformers/vit", num_classes=5, image_size=32, options=VIT)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"has no weights: expected model\.safetensors"):
        create(f"transformers/{tmp_path / 'config'}", num_classes=5, start="pretrained")


def test_a_processors_arithmetic(folder: Path, tmp_path: Path) -> None:
    """Bytes scaled otherwise, shifted, cropped, or in the order blue-green-red come out as the library would have them."""
    words = FAMILIES[IDS.index("mobilevit")][2]
    torch.manual_seed(0)
    config = transformers.MobileViTConfig(**words, image_size=64, num_labels=4)
    transformers.MobileViTForImageClassification(config).save_pretrained(tmp_path)
    processor = {
        "do_flip_channel_order": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 72},
    }
    processor |= {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}, "resample": 3, "do_resize": True}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(processor))
    tapped = create(f"transformers/{tmp_path}", num_classes=None).eval()
    assert (tapped.input_size, tapped.mean, tapped.std, tapped.interpolation) == (
        (64, 64),
        (0.0,) * 3,
        (1.0,) * 3,
        "bicubic",
    )
    x, _ = batch(64)
    plain = transformers.MobileViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(tapped(x).logits, plain(x.flip(1)).logits)
    file.write_text(
        json.dumps({"rescale_factor": 2 / 255, "rescale_offset": True, "image_mean": [0.1] * 3, "image_std": [0.5] * 3})
    )
    tapped = create(f"transformers/{tmp_path}", num_classes=None)
    wanted = (2 * x - 1 - 0.1) / 0.5
    torch.testing.assert_close((x - tapped._mean) / tapped._std, wanted)
    for wrong in ({"size": {"longest_edge": 3}}, {"image_mean": 3, "image_std": [1]}, {"size": 10**9}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="the image processor"):
            create(f"transformers/{tmp_path}", num_classes=None)


def test_a_hub_name_is_read_from_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--small-vit"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    place = cached / "snapshots" / revision
    place.mkdir(parents=True)
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    name = "transformers/someone/small-vit"
    tapped, own = create(name, num_classes=None, start="pretrained"), create(f"transformers/{folder}", num_classes=None)
    assert all(torch.equal(a, b) for a, b in zip(tapped.parameters(), own.parameters(), strict=True))
    assert tapped.mean == (0.4,) * 3
    fresh = create(name, num_classes=3)
    assert not torch.equal(fresh.module.vit.embeddings.cls_token, own.module.vit.embeddings.cls_token)
    with pytest.raises(
        ValueError,
        match=r"someone/other is not available from the hub \(it cannot be reached, and the local cache does not "
        r"[^:]*give a folder",
    ):
        create("transformers/someone/other", num_classes=3)
    module = transformers.ViTForImageClassification.from_pretrained(folder)
    module.config._name_or_path = module.name_or_path = "someone/small-vit"
    assert uhkd.models.wrap_module(module, num_classes=None).mean == (0.4,) * 3


def test_names_are_listed_and_told() -> None:
    names = model_names("transformers/*")
    assert {"transformers/vit", "transformers/swin", "transformers/resnet"} <= set(names)
    assert "transformers/timm_wrapper" not in names


TRAINING: dict[str, Any] = {
    "data": "digits",
    "train_limit": 120,
    "epochs": 1,
    "batch_size": 20,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "allow_weak_teacher": True,
}


def test_runs_are_reloaded_by_name_and_as_objects(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distil from a folder into a student by name, and from an object into an object; eval and predict read both."""
    monkeypatch.setattr(fit, "draw", lambda folder: [])
    by_name = uhkd.distill(
        teacher=f"transformers/{folder}",
        student="transformers/convnext",
        student_options=PYRAMID | {"patch_size": 2},
        image_size=32,
        method="kd",
        out=tmp_path / "named",
        **TRAINING,
    )
    assert "training a linear probe" in capsys.readouterr().err  # four classes are not ten
    config = transformers.ResNetConfig(**PYRAMID, embedding_size=8, layer_type="basic", num_labels=CLASSES)
    module = transformers.ResNetForImageClassification(config)
    teacher = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, image_size=32, num_labels=CLASSES))
    by_object = uhkd.distill(
        teacher=teacher, student=module, method="uhkd", image_size=32, out=tmp_path / "object", **TRAINING
    )
    assert by_object.student.module is module
    x, _ = batch(32)
    for result, name in ((by_name, "transformers/convnext"), (by_object, "transformers/resnet")):
        loaded = load_run(result.run.path)
        assert loaded.config.name == name
        with torch.no_grad():
            torch.testing.assert_close(loaded(x).logits, result.student.eval()(x).logits)
        measured = uhkd.evaluate(run=str(result.run.path), split="val", device="cpu")
        assert measured["accuracy"] == pytest.approx(result.metrics["val_accuracy"])
    assert isinstance(load_run(tmp_path / "named").module, nn.Module)


def test_code_that_a_folder_brings_is_not_run(folder: Path, tmp_path: Path) -> None:
    """`auto_map` names code beside the configuration; nothing of it is imported, and weights come out as before."""
    place = tmp_path / "saved"
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    config = json.loads((place / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil"}
    config |= {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel"}
    (place / "config.json").write_text(json.dumps(config))
    (place / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n")
    tapped, own = create(f"transformers/{place}", num_classes=None), create(f"transformers/{folder}", num_classes=None)
    assert all(torch.equal(a, b) for a, b in zip(tapped.parameters(), own.parameters(), strict=True))
    assert not {"auto_map", "attn_implementation", "_attn_implementation"} & tapped.config.options.keys()
    assert tapped.module.config._attn_implementation == own.module.config._attn_implementation != "someone/kernel"
    nested = {"vision_config": VIT | {"_attn_implementation": "someone/kernel"}}
    with pytest.raises(ValueError, match="the option _attn_implementation is not part of an architecture"):
        create("transformers/clip", num_classes=3, image_size=32, options=nested)
    assert not (tmp_path / "executed").exists()
    config["model_type"] = "evil"
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has the model type 'evil', which is no image classifier"):
        create(f"transformers/{place}", num_classes=None)
    assert not (tmp_path / "executed").exists()


def test_what_torch_says_of_torchao_stays_unsaid(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    from transformers.models.auto import configuration_auto

    logger = logging.getLogger("torch.utils._pytree")

    class Noisy(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            logger.warning("an Enum subclass")
            return super().__getitem__(name)

    monkeypatch.setattr(configuration_auto, "CONFIG_MAPPING", Noisy(vit=transformers.ViTConfig))
    from uhkd.models.transformers.configuration import make_config

    assert make_config("vit", {}, 3).num_labels == 3 and not caplog.records
    logger.warning("others are heard")
    assert len(caplog.records) == 1
