"""Models: names, weights that are never executed, heads, cards, and every error a newcomer makes."""

import json
import pickle
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.models import ModelConfig, create, load_run, load_state, model_names, wrap_module
from uhkd.models.weights import head_names
from uhkd.recipe import DistillRecipe
from uhkd.runs import RunFolder
from uhkd.training.inputs import Inputs
from uhkd.training.load_teacher import load_teacher


def write_run(folder: Path, tapped: Any) -> Path:
    """A run folder as the engine leaves it: card and weights of the module."""
    folder.mkdir()
    card = tapped.config.to_json()
    RunFolder(folder).write_model(card, tapped.module.state_dict())
    return folder


def same_output(one: Any, other: Any) -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one.eval()(image).logits, other.eval()(image).logits)


# Names.


def test_names_can_be_listed_and_filtered() -> None:
    assert model_names("uhkd/*")[:2] == ["uhkd/vit_micro", "uhkd/vit_tiny"]
    assert {"timm/resnet18", "torchvision/resnet18", "uhkd/resnet18"} == set(model_names("resnet18"))
    assert "torchvision/swin_t" in model_names("torchvision/*")
    assert not [name for name in model_names("torchvision/*") if "rcnn" in name or "deeplab" in name]
    assert model_names("nothing*") == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm/resnet19", "timm/resnet18"),
        ("resnet19", "timm/resnet18"),
        ("torchvision/resnet19", "torchvision/resnet18"),
        ("uhkd/vit_micr", "uhkd/vit_micro"),
        ("timm/resnet18.nosuchweights", "timm/resnet18.a1_in1k"),
        ("timm/Swin_Tiny_patch4_window7_224", "timm/swin_tiny_patch4_window7_224"),
    ],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=r"unknown model .*did you mean") as caught:
        create(name, num_classes=5)
    assert nearest in str(caught.value)


def test_a_name_without_library_is_timm() -> None:
    assert create("test_resnet", num_classes=5).config.name == "timm/test_resnet"
    assert create("timm/test_resnet.r160_in1k", num_classes=5).config.name == "timm/test_resnet.r160_in1k"


def test_paths_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="techer; give a folder that finetune or distill wrote"):
        create(str(tmp_path / "techer"), num_classes=5)
    with pytest.raises(ValueError, match="is no run folder of uhkd: it lacks"):
        create(str(tmp_path / "teacher"), num_classes=5)
    (tmp_path / "teacher" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no such folder: .*techer; did you mean .*teacher\?"):
        create(str(tmp_path / "techer"), num_classes=5)
    with pytest.raises(ValueError, match=r"teacher' is no run folder of uhkd, but a model folder: write 'local-dir:"):
        create(str(tmp_path / "teacher"), num_classes=5)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("model: uhkd/vit_micro\ndata: digits\n")
    with pytest.raises(ValueError, match=r"begun' is not finished: run its command again with --resume"):
        create(str(tmp_path / "begun"), num_classes=5)
    with pytest.raises(ValueError, match=r"is a file: give a run folder \(an option start takes weights files"):
        create(str(tmp_path / "weights.pt"), num_classes=5)
    with pytest.raises(ValueError, match="is no timm model folder"):
        create(f"local-dir:{tmp_path}", num_classes=5)
    with pytest.raises(ValueError, match="is no run folder of uhkd: it lacks"):
        load_run(tmp_path)


# Sizes, options, inputs.


def test_the_own_size_and_normalisation_are_used() -> None:
    vit = create("timm/vit_tiny_patch16_224", num_classes=5, options={"depth": 1})
    assert vit.input_size == (224, 224)
    assert vit.mean == (0.5, 0.5, 0.5)
    assert vit.interpolation == "bicubic"
    resnet = create("torchvision/resnet18", num_classes=5, image_size=64)
    assert resnet.mean == (0.485, 0.456, 0.406)
    assert resnet.interpolation == "bilinear"
    assert create("uhkd/resnet10", num_classes=5).input_size == (32, 32)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "timm/vit_tiny_patch16_224",
            {"image_size": 8},
            r"cannot process images of 8x8 px: .*; timm/vit_tiny_patch16_224 was made for 224x224",
        ),
        ("timm/coatnet_pico_rw_224", {"image_size": 50}, "50x50 px"),
        ("uhkd/vit_micro", {"image_size": 2}, "at least 4 px a side"),
        ("uhkd/vit_micro", {"image_size": 0}, "image_size must be one or two positive numbers"),
        ("uhkd/vit_micro", {"image_size": (32, 32, 3)}, "image_size must be one or two positive numbers"),
        ("torchvision/inception_v3", {"image_size": 32}, "cannot process images of 32x32 px"),
        ("torchvision/vit_b_16", {"image_size": (32, 64)}, "takes only square images"),
        ("timm/vit_tiny_patch16_224", {"options": {"dept": 2}}, r"takes no option 'dept'; did you mean 'depth'"),
        ("uhkd/vit_micro", {"options": {"embed_dims": 2}}, r"takes no option 'embed_dims'; did you mean 'embed_dim'"),
        (
            "timm/vit_tiny_patch16_224",
            {"options": {"img_size": [32, 32, 3]}},
            "img_size must be one or two positive numbers",
        ),
        ("timm/resmlp_12_224", {"options": {"num_blocks": 2}}, "sets this option itself"),
        ("uhkd/vit_micro", {"num_classes": -1}, "num_classes must be at least 1"),
        ("torchvision/squeezenet1_0", {"num_classes": 0}, "cannot be built without a head"),
        ("uhkd/vit_micro", {"levels": -2}, "levels must be"),
    ],
)
def test_impossible_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        create(name, **{"num_classes": 5, **settings})
    assert "\n" not in str(caught.value)


# Weights.


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped", "parallel"])
def test_weights_round_trip(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    source = create("uhkd/resnet10", num_classes=5)
    state = source.module.state_dict()
    file = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "pth":
        torch.save(state, file)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "args": {"lr": 0.1}, "state_dict": state}, file)
    else:
        torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    read = load_state(file)
    assert read.keys() == state.keys()
    torch.manual_seed(1)
    loaded = create("uhkd/resnet10", num_classes=5, start=file)
    assert loaded.notes == []
    same_output(source, loaded)


class Trap:
    """Unpickling this creates a file: the proof that code was run."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.witness,))


def test_code_in_a_weights_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap(witness)}, tmp_path / "bad.pth")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps({"a": Trap(witness)}, protocol=2))
    for name in ("bad.pth", "raw.pkl"):
        with pytest.raises(ValueError, match=r"was refused|is no complete torch weights file"):
            load_state(tmp_path / name)
        with pytest.raises(ValueError, match=r"was refused|is no complete torch weights file"):
            create("uhkd/resnet10", num_classes=5, start=tmp_path / name)
        assert not witness.exists()
    pickle.loads((tmp_path / "raw.pkl").read_bytes())
    assert witness.exists(), "the trap itself must work, or the test proves nothing"


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("cut.safetensors", "no complete safetensors file"),
        ("text.pth", "text.pth"),
        ("list.pth", "contains no named tensors"),
        ("none.pth", "there is no weights file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_state(tmp_path / name)
    with pytest.raises(ValueError, match="start must be random, pretrained or the path"):
        create("uhkd/resnet10", num_classes=5, start="randm")


@pytest.mark.parametrize("name", ["uhkd/resnet10", "timm/deit_tiny_distilled_patch16_224", "torchvision/mobilenet_v2"])
def test_a_head_for_other_classes_is_replaced(tmp_path: Path, name: str) -> None:
    options = {"depth": 2} if "deit" in name else {}
    source = create(name, num_classes=7, image_size=32, options=options)
    save_file(source.module.state_dict(), tmp_path / "w.safetensors")
    loaded = create(name, num_classes=3, image_size=32, options=options, start=tmp_path / "w.safetensors")
    assert loaded.shapes.logits == 3
    assert any("a head for 7 classes" in note and "for 3 classes starts at random" in note for note in loaded.notes)
    heads = head_names(loaded.module, 3)
    before = source.module.state_dict()
    for key, tensor in loaded.module.state_dict().items():
        if not key.startswith(heads):
            assert torch.equal(tensor, before[key]), key
    # Nobody asked for a number of classes: the head in the file is the one to keep.
    kept = create(name, num_classes=None, image_size=32, options=options, start=tmp_path / "w.safetensors")
    assert kept.shapes.logits == 7
    same_output(source, kept)


def test_a_file_without_head_loads_the_body(tmp_path: Path) -> None:
    source = create("uhkd/resnet10", num_classes=7)
    body = {key: tensor for key, tensor in source.module.state_dict().items() if not key.startswith("fc.")}
    save_file(body, tmp_path / "w.safetensors")
    loaded = create("uhkd/resnet10", num_classes=7, start=tmp_path / "w.safetensors")
    assert any("has no head" in note for note in loaded.notes)


def test_weights_of_another_network_are_listed(tmp_path: Path) -> None:
    state = create("uhkd/vit_micro", num_classes=5).module.state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"do not fit ResNet: .*missing \(.*and \d+ more\); .*unexpected \("):
        create("uhkd/resnet10", num_classes=5, start=tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"of another shape \(.* for .*\)"):
        create("uhkd/vit_micro", num_classes=5, start=tmp_path / "vit.safetensors", options={"embed_dim": 48})


# timm's model folders.


@pytest.mark.parametrize("safe", [True, False])
def test_local_dir(tmp_path: Path, safe: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=6, img_size=64, depth=2).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=safe)
    for prefix in ("local-dir:", "timm/local-dir:"):
        tapped = create(f"{prefix}{tmp_path}", num_classes=None, image_size=64, options={"depth": 2}).eval()
        image = torch.rand(2, 3, 64, 64)
        mean, std = torch.tensor(tapped.mean).view(3, 1, 1), torch.tensor(tapped.std).view(3, 1, 1)
        torch.testing.assert_close(tapped(image).logits, model((image - mean) / std))
        assert tapped.config.name == "timm/test_vit"
    again = create(f"local-dir:{tmp_path}", num_classes=2, image_size=64, options={"depth": 2})
    assert again.shapes.logits == 2
    assert "6 classes" in again.notes[0]


def test_local_dir_of_an_older_timm_without_model_args(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 6}))
    tapped = create(f"local-dir:{tmp_path}", num_classes=None)
    assert tapped.shapes.logits == 6
    original_head = {"architecture": "test_resnet", "num_classes": 6, "pretrained_cfg": {"num_classes": 1000}}
    (tmp_path / "config.json").write_text(json.dumps(original_head))
    assert create(f"local-dir:{tmp_path}", num_classes=None).shapes.logits == 6
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights: expected model.safetensors or pytorch_model.bin"):
        create(f"local-dir:{tmp_path}", num_classes=None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is no timm configuration"):
        create(f"local-dir:{tmp_path}", num_classes=None)


# Cards and run folders.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uhkd/vit_micro", {"image_size": 16, "options": {"depth": 2}, "levels": ["1"]}),
        ("uhkd/swin_pico", {"levels": 2}),
        ("timm/test_vit", {"image_size": (64, 96)}),
        ("timm/test_resnet", {"levels": ["layer2.0.conv1", "layer3"]}),
        ("torchvision/resnet18", {"image_size": 64}),
        ("timm/test_resnet", {"num_classes": 0}),
    ],
)
def test_a_card_rebuilds_the_network(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    source = create(name, **{"num_classes": 4, **settings}).eval()
    loaded = load_run(write_run(tmp_path / "run", source))
    assert loaded.config == source.config
    assert loaded.levels == source.levels
    assert (loaded.shapes, loaded.input_size, loaded.mean) == (source.shapes, source.input_size, source.mean)
    assert not loaded.training
    image = torch.rand(2, 3, 40, 40)
    want = frozenset({"maps", "embedding"})
    for one, other in zip(source(image, want).maps, loaded(image, want).maps, strict=True):
        torch.testing.assert_close(one, other)


def test_card_is_plain_data() -> None:
    card = create("uhkd/swin_pico", num_classes=4, options={"depths": (1, 1, 1, 1)}).config
    data = json.loads(json.dumps(card.to_json()))
    back = ModelConfig.from_json({**data, "from_the_future": 1})
    assert back.image_size == (32, 32)
    assert back.levels == card.levels
    assert (
        create(back.name, num_classes=4, options=back.options).shapes
        == create(card.name, num_classes=4, options=card.options).shapes
    )
    with pytest.raises(ValueError, match=r"card\.json needs num_classes"):
        ModelConfig.from_json({"name": "uhkd/vit_micro", "image_size": [32, 32]})


def test_a_run_folder_is_a_name_and_a_start(tmp_path: Path) -> None:
    source = create("uhkd/resnet10", num_classes=4, image_size=16, levels=["layer2", "layer3"])
    run = write_run(tmp_path / "run", source)
    by_name = create(str(run), num_classes=None)
    assert by_name.config == source.config
    same_output(source, by_name)
    same_output(source, create("uhkd/resnet10", num_classes=4, image_size=16, start=run))
    other = create(str(run), num_classes=9)
    assert other.shapes.logits == 9
    assert "a head for 4 classes" in other.notes[0]
    assert other.config.name == "uhkd/resnet10"


def test_a_stored_probe_is_put_back(tmp_path: Path) -> None:
    source = create("uhkd/resnet10", num_classes=4)
    source.set_probe(nn.Linear(256, 3))
    assert source.probe is not None
    state = {**source.module.state_dict(), **{f"probe.{k}": v for k, v in source.probe.state_dict().items()}}
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").write_model(source.config.to_json(), state)
    loaded = load_run(tmp_path / "run")
    assert loaded.shapes.logits == 3
    same_output(source, loaded)


# A network of one's own.


class Own(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean((2, 3)))


def test_wrap(tmp_path: Path) -> None:
    tapped = wrap_module(Own(5), num_classes=5, image_size=32, mean=(0.5, 0.5, 0.5))
    assert tapped.levels == ("one", "two")
    assert tapped.config.name == "module/Own"
    assert tapped.config.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="Own gives 5 classes, expected 6"):
        wrap_module(Own(5), num_classes=6, image_size=32)
    with pytest.raises(ValueError, match="holds a module of your own"):
        load_run(write_run(tmp_path / "run", tapped))
    bare = FeatureExtractor(Own(5), input_size=(32, 32))
    assert wrap_module(bare, num_classes=5) is bare and bare.config.name == "module/Own"
    with pytest.raises(ValueError, match="Own gives 5 classes, expected an embedding: build it with num_classes=0"):
        wrap_module(bare, num_classes=0)
    body = wrap_module(Own(0), num_classes=0, image_size=(32, 48))
    assert (body.shapes.logits, body.shapes.embedding) == (None, 8)
    assert body(torch.rand(2, 3, 32, 48), frozenset({"embedding"})).embedding.shape == (2, 8)


# Bugs.


def test_a_bug_is_not_shown_as_a_mistake_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> Any:
        raise ValueError("bug")

    run = write_run(tmp_path / "run", create("uhkd/resnet10", num_classes=4, image_size=16))
    recipe = DistillRecipe(teacher="uhkd/vit_tiny", student="uhkd/vit_micro", data="digits", teacher_start="random")
    inputs = create_autospec(Inputs, instance=True)
    inputs.start_of.return_value = "random"
    actions = (
        ("uhkd.models.build.ModelConfig.from_json", lambda: load_run(run)),
        ("uhkd.features.extractor.build_timm_extractor", lambda: create("uhkd/resnet10", num_classes=4)),
        ("uhkd.training.load_teacher.create", lambda: load_teacher(recipe, None, inputs)),
    )
    for target, act in actions:
        with monkeypatch.context() as patched:
            patched.setattr(target, bug)
            with pytest.raises(ValueError, match="bug") as caught:
                act()
            assert not isinstance(caught.value, UhkdError), target


# Pretrained weights without a network.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["timm/test_vit.r160_in1k", "timm/test_vit", "torchvision/resnet18", "uhkd/vit_micro"])
def test_pretrained_without_network_fails_quickly_and_clearly(name: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=r"pretrained weights of .* are not available .*start=random.*run folder"):
        create(name, num_classes=5, start="pretrained")
    assert time.perf_counter() - begin < 10
