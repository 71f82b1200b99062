"""Networks, their options and their weights."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import uhkd
from references.errors.case import Case
from references.errors.shelf import DIGITS, DISTILL, TINY, WORDS, write


def finetune(model: str, more: str = "") -> str:
    return f"finetune --model {model} {DIGITS} {TINY} --out new {more}"


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def pickled() -> None:
    write("weights.pth", pickle.dumps(Bomb()))


SHORT = {name: word for name, word in WORDS.items() if name != "options"}


def own(classes: int, **words: object) -> object:
    """Training a network of one's own of so many outputs."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    words = SHORT | {"out": "new"} | words
    return uhkd.finetune(model=module, **words)


def in_another_order() -> nn.Module:
    """The trained network of a run, its last layer's outputs in another order."""
    module = uhkd.load_run("run").module
    with torch.no_grad():
        for parameter in module.get_submodule("fc").parameters():
            parameter.copy_(parameter.roll(1, 0))
    return module


def finished() -> None:
    """A finished run of such a network, its weights damaged."""
    own(3, data="images", out="mine")
    write("mine/model.safetensors", "hello")


def card(**changes: object) -> None:
    """Another model card in the run folder."""
    file = Path("run/card.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def folder(config: dict[str, object] | str, weights: str | bytes | None = None) -> Callable[[], None]:
    """A folder such as transformers writes, of a configuration and perhaps weights."""

    def make() -> None:
        write("saved/config.json", config if isinstance(config, str) else json.dumps(config))
        if weights is not None:
            write("saved/model.safetensors", weights)

    return make


SMALL_VIT = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SMALL_VIT |= {"image_size": 16, "patch_size": 4}

CASES = (
    Case(
        "a misspelt family of transformers",
        finetune("transformers/convnex"),
        "transformers has no family 'convnex' of image classifiers; did you mean 'convnext'…? (`uhkd models "
        "'transformers/*'` lists the families; a folder written by save_pretrained or a hub name OWNER/MODEL also works)",
    ),
    Case(
        "a folder without a configuration of transformers",
        finetune("transformers/./images"),
        "'images' is no model folder of transformers: expected config.json in it, as save_pretrained writes it",
        has=("images",),
    ),
    Case(
        "a damaged configuration of transformers",
        finetune("transformers/saved"),
        "'saved/config.json' cannot be read: saved/config.json is damaged or was not written by uhkd: no JSON of plain data (…)",
        make=folder("{"),
    ),
    Case(
        "a transformers model that is not an image classifier",
        finetune("transformers/saved"),
        "'saved' has the model type 'bert', which is no image classifier; supported: beit, bit, clip, convnext and others",
        make=folder({"model_type": "bert"}),
    ),
    Case(
        "a transformers folder with quantised weights",
        finetune("transformers/saved"),
        "'saved' has quantised weights, which cannot be trained; use the weights in full precision",
        make=folder(SMALL_VIT | {"quantization_config": {"load_in_8bit": True}}),
    ),
    Case(
        "a transformers folder without weights, as pretrained",
        finetune("transformers/saved", "--start pretrained"),
        "'saved' has no weights: expected model.safetensors, as save_pretrained writes it",
        make=folder(SMALL_VIT),
    ),
    Case(
        "a transformers folder with pickled weights",
        finetune("transformers/saved"),
        "'saved/pytorch_model.bin' was not opened: reading weights of this kind can run code; save them again with "
        "save_pretrained, as "
        "model.safetensors",
        make=lambda: (folder(SMALL_VIT)(), write("saved/pytorch_model.bin", pickle.dumps(Bomb()))),
    ),
    Case(
        "damaged weights of transformers",
        finetune("transformers/saved"),
        "the weights in 'saved' cannot be read (…); write or copy them again",
        make=folder(SMALL_VIT, "hello"),
    ),
    Case(
        "pretrained weights of a family of transformers",
        finetune("transformers/vit", "--start pretrained"),
        "pretrained weights of transformers/vit are not available (a family has none; name a model of the hub); "
        "without an internet connection, use start=random, a weights file (start=PATH), a timm model folder (local-dir:PATH) "
        "or a run folder",
    ),
    Case(
        "an unknown option of a family of transformers",
        finetune("transformers/vit", "--options hidden_siz=8"),
        "transformers/vit takes no option 'hidden_siz'; did you mean 'hidden_size'…?",
    ),
    Case(
        "an option of transformers that could download code",
        finetune("transformers/vit", "--options attn_implementation=kernels-community/flash-attn"),
        "transformers/vit: the option attn_implementation is not part of an architecture and could fetch or run code",
    ),
    Case(
        "an impossible option of transformers",
        finetune("transformers/vit", "--options hidden_act=nosuch"),
        "transformers/vit cannot be built for images of 16x16 px: …",
    ),
    Case(
        "a misspelt network",
        finetune("timm/resnet81"),
        "unknown model 'timm/resnet81': did you mean timm/resnet18, …? (`uhkd models` lists all; a run folder or "
        "local-dir:PATH also works)",
    ),
    Case(
        "weights that timm does not have",
        finetune("timm/resnet18.mine"),
        "unknown model 'timm/resnet18.mine': did you mean timm/resnet18.…? (`uhkd models` lists all; a run folder or "
        "local-dir:PATH also works)",
    ),
    Case(
        "a path that does not exist",
        finetune("./runs/teacher"),
        "no such folder: ./runs/teacher; give a folder that finetune or distill wrote",
    ),
    Case(
        "a folder that is not a run",
        finetune("./images"),
        "'./images' is no run folder of uhkd: it lacks card.json or model.safetensors; give a folder that finetune or distill "
        "wrote",
        has=("images",),
    ),
    Case(
        "a timm model folder without config.json",
        finetune("local-dir:images"),
        "'images' is no timm model folder: expected config.json and model.safetensors in it",
        has=("images",),
    ),
    Case(
        "an unknown option of the network",
        finetune("uhkd/vit_micro", "--options dept=3"),
        "uhkd/vit_micro takes no option 'dept'; did you mean 'depth' or 'depths'?",
    ),
    Case(
        "an impossible option of the network",
        finetune("uhkd/vit_micro", "--options num_heads=5"),
        "uhkd/vit_micro cannot be built for images of 16x16 px: …",
    ),
    Case(
        "an option that would read other files",
        finetune("timm/resnet18", "--options checkpoint_path=weights.pth"),
        "timm/resnet18: the option checkpoint_path would read other files or fetch weights; set the weights with start "
        "(--start, --student-start, --teacher-start)",
    ),
    Case(
        "an image size that the network does not support",
        finetune("timm/test_vit", "--image-size 20"),
        "VisionTransformer cannot process images of 20x20 px: …; timm/test_vit was made for 160x160",
    ),
    Case(
        "a network for images of six channels",
        finetune("timm/resnet18", "--options in_chans=6"),
        "ResNet takes images of 6 channels, and images are read as RGB or grey: build it with three input channels (timm: "
        "in_chans=3) or one",
    ),
    Case(
        "an image size that is not square, for a network that takes only squares",
        f"finetune --model torchvision/vit_b_16 {DIGITS} --device cpu --image-size 96 224 --out new",
        "torchvision/vit_b_16 takes only square images, found 96x224 px",
    ),
    Case(
        "a card.json with an unknown resize",
        "eval run",
        "'run' cannot be used: resize in card.json is invalid: Input should be 'crop', 'squash' or 'pad', found 'stretch'",
        has=("run",),
        make=lambda: card(resize="stretch"),
    ),
    Case(
        "an unknown layer",
        finetune("uhkd/resnet10", "--levels layer1 layer9"),
        "ResNet has no layer 'layer9'; did you mean 'layer4', 'layer3', 'layer2' or 'layer1'? (… in all)",
    ),
    Case(
        "pretrained weights of a network that has none",
        finetune("uhkd/vit_micro", "--start pretrained"),
        "pretrained weights of uhkd/vit_micro are not available (the networks uhkd/... have none); without an internet "
        "connection, use start=random, a weights file (start=PATH), a timm model folder (local-dir:PATH) or a run folder",
    ),
    Case(
        "a weights file that does not exist",
        finetune("uhkd/vit_micro", "--start weights.pth"),
        "start must be random, pretrained or the path of a weights file; there is no file 'weights.pth'",
    ),
    Case(
        "a damaged weights file",
        finetune("uhkd/vit_micro", "--start w.safetensors"),
        "'w.safetensors' is no complete safetensors file (…); write, copy or download it again",
        make=lambda: write("w.safetensors", "hello"),
    ),
    Case(
        "a damaged PyTorch weights file",
        finetune("uhkd/vit_micro", "--start w.pth"),
        "'w.pth' is no complete torch weights file (…); write, copy or download it again",
        make=lambda: write("w.pth", "hello"),
    ),
    Case(
        "a weights file that could run code",
        finetune("uhkd/vit_micro", "--start weights.pth"),
        "'weights.pth' was refused: it contains more than tensors and plain data, and reading it could run code;"
        " save model.state_dict() with safetensors",
        make=pickled,
    ),
    Case(
        "a weights file without weights",
        finetune("uhkd/vit_micro", "--start w.pth"),
        "'w.pth' contains no named tensors: expected model.state_dict(), found a mapping of epoch",
        make=lambda: torch.save({"epoch": 3}, "w.pth"),
    ),
    Case(
        "weights of another network",
        finetune("uhkd/vit_micro", "--start run"),
        "the weights in 'run/model.safetensors' do not fit VisionTransformer: … missing (…); … unexpected (…)",
        has=("run",),
    ),
    Case(
        "a run folder whose card is damaged",
        "eval run",
        "'run' cannot be used: run/card.json is damaged or was not written by uhkd: no JSON of plain data (…)",
        has=("run",),
        make=lambda: write("run/card.json", "{"),
    ),
    Case(
        "a card.json with impossible numbers",
        "eval run",
        "'run' cannot be used: card.json has 3 classes and images of (1000000000, 1000000000); expected "
        "0 or more, and sides of 1 to 16384 px",
        has=("run",),
        make=lambda: card(image_size=[10**9, 10**9]),
    ),
    Case(
        "a card of another network",
        "eval run",
        "the weights in 'run' do not fit VisionTransformer: … missing (…); … unexpected (…)",
        has=("run",),
        make=lambda: card(name="uhkd/vit_micro", options={}),
    ),
    Case(
        "a run folder whose weights are damaged",
        "eval run",
        "'run/model.safetensors' is no complete safetensors file (…); write, copy or download it again",
        has=("run",),
        make=lambda: write("run/model.safetensors", "hello"),
    ),
    Case(
        "a teacher without pretrained weights",
        f"{DISTILL} --teacher uhkd/vit_tiny {DIGITS}",
        "teacher: pretrained weights of uhkd/vit_tiny are not available (the networks uhkd/... have none); "
        "without an internet connection, use start=random, a weights file (start=PATH), a timm model folder (local-dir:PATH) "
        "or a run folder; for a teacher: --teacher-start, or --teacher with a run folder",
    ),
    Case(
        "a teacher at chance level",
        f"{DISTILL} --teacher teacher {DIGITS}",
        "the teacher teacher is at chance level on these images (…% of 143 right, 10 classes; 95 % interval …% to …%, the "
        "commonest class alone …%); train it first: uhkd finetune --model teacher "
        "--data digits --out DIR, then --teacher DIR (or use it anyway "
        "with --allow-weak-teacher)",
        has=("teacher",),
    ),
    Case(
        "a trained module whose outputs have another order than the classes",
        lambda: uhkd.distill(teacher=in_another_order(), student="uhkd/vit_micro", data="images", out="new", **SHORT),
        "the teacher module/ResNet is at chance level on these images (…); if it is trained already, check that output k is "
        "the k-th class of the data (ant, bee, cat); else train it first: uhkd finetune --model module/ResNet …",
        has=("images", "run"),
    ),
    Case(
        "a teacher's head with other classes",
        f"{DISTILL} --teacher run --teacher-head keep {DIGITS}",
        "the teacher's head does not fit: it has 3 classes, the data 10; use teacher_head=auto to train a linear probe",
        has=("run",),
    ),
    Case(
        "a module with another number of classes",
        lambda: own(7, data="digits"),
        "Sequential gives 7 classes, expected 10: replace its last layer",
    ),
    Case(
        "resuming a finished run with damaged weights",
        lambda: own(3, data="images", out="mine", resume=True),
        "'mine/model.safetensors' is no complete safetensors file (…); write, copy or download it again",
        has=("images",),
        make=finished,
    ),
)
