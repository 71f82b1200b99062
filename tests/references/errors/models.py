"""Networks, their options and their weights."""

import argparse
import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
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


def small(classes: int) -> list[nn.Module]:
    """The layers of a small network."""
    return [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)]


class Divided(nn.Module):
    """0 / 0 for all images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x) / 0


class Picky(nn.Module):
    """NaN for images with an even background, such as those of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*small(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        even = (flat == flat.amin(1, keepdim=True)).float().mean(1) > 0.02
        return self.layers(x) * torch.where(even, torch.nan, 1.0)[:, None]


SICK = nn.Sequential(*small(3))
nn.init.constant_(SICK[0].get_parameter("bias"), float("nan"))


def train_module(module: nn.Module, data: str = "digits") -> object:
    """Training a network of one's own."""
    return uhkd.finetune(model=module, **SHORT | {"out": "new", "data": data})


def zipped(*names: str) -> bytes:
    """A zip archive of such files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "hello")
    return file.getvalue()


WEIGHTS = {"conv.weight": torch.zeros(2, 3, 1, 1)}


def spoil(value: float) -> None:
    """Weights with such a number in two layers."""
    state = uhkd.models.create("uhkd/resnet10", num_classes=10).module.state_dict()
    names = [name for name in state if name.startswith("layer1.0.conv")]
    save_file(state | {name: state[name] + value for name in names[:2]}, "w.safetensors")


def changed_head(change: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """w.safetensors of a network whose last layer has another weight; the name of its bias goes with that."""
    state = uhkd.models.create("uhkd/resnet10", num_classes=10).module.state_dict()
    new = change(state.pop("fc.weight"))
    name = next(iter(new)).replace("weight", "bias")
    bias = state.pop("fc.bias")
    save_file(state | new | {name: bias}, "w.safetensors")


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
        "a weights file with a misspelt name",
        finetune("uhkd/resnet10", "--start w.pt"),
        "start must be random, pretrained or the path of a weights file; there is no file 'w.pt'; did you mean w.pth?",
        make=lambda: write("w.pth", ""),
    ),
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
        "a folder of save_pretrained, or of a Trainer's checkpoint, by its path alone",
        finetune("hub/checkpoint-500"),
        "'hub/checkpoint-500' is no run folder of uhkd, but a model folder: write 'transformers/hub/checkpoint-500'",
        make=lambda: write("hub/checkpoint-500/config.json", '{"model_type": "vit"}'),
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
        finetune("timm/test_vit", "--image-size 20 --start random"),
        "VisionTransformer cannot process images of 20x20 px: …; timm/test_vit was made for 160x160",
    ),
    Case(
        "a network for images of six channels",
        finetune("timm/resnet18", "--start random --options in_chans=6"),
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
        "'weights.pth' was refused: it contains more than tensors and plain data (a pickle), and reading it could run code; if "
        'you trust the file, save its tensors alone: python -c "import sys, torch as t; …" weights.pth weights-tensors.pth',
        make=pickled,
    ),
    Case(
        "a checkpoint with the options of its training in it",
        finetune("uhkd/vit_micro", "--start 'my run.pth'"),
        "'my run.pth' was refused: it contains more than tensors and plain data (argparse.Namespace), and reading it could run "
        "code; if you trust the file, save its tensors alone: python -c \"import sys, torch as t; …\" 'my run.pth' "
        "'my run-tensors.pth'",
        make=lambda: torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, "my run.pth"),
    ),
    Case(
        "a TorchScript file as weights",
        finetune("uhkd/vit_micro", "--start w.pt"),
        "'w.pt' is a TorchScript file; if you trust it, save its weights alone: python -c \"import sys, torch as t; "
        "t.save(t.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])\" w.pt w-tensors.pth",
        make=lambda: write("w.pt", zipped("w/data.pkl", "w/constants.pkl")),
    ),
    Case(
        "a program of torch.export as weights",
        finetune("uhkd/vit_micro", "--start w.pt2"),
        "'w.pt2' is a program of torch.export; give the .pth or .safetensors file from which it was exported",
        make=lambda: write("w.pt2", zipped("w/archive_format", "w/models/model.json")),
    ),
    Case(
        "a zip archive with weights in it",
        finetune("uhkd/vit_micro", "--start w.zip"),
        "'w.zip' is a zip archive of runs/best.pth; unpack it and give the weights file in it",
        make=lambda: write("w.zip", zipped("runs/best.pth")),
    ),
    Case(
        "a compressed archive as weights",
        finetune("uhkd/vit_micro", "--start w.tar.gz"),
        "'w.tar.gz' is a compressed archive; unpack it and give the weights file in it",
        make=lambda: write("w.tar.gz", gzip.compress(b"hello")),
    ),
    Case(
        "an ONNX file as weights",
        finetune("uhkd/vit_micro", "--start w.onnx"),
        "'w.onnx' is an ONNX file, a graph for inference; give the .pth or .safetensors file from which it was exported",
        make=lambda: write("w.onnx", b"\x08\x08\x12\x07pytorch"),
    ),
    Case(
        "a Git LFS pointer in place of the weights",
        finetune("uhkd/vit_micro", "--start w.safetensors"),
        "'w.safetensors' is a Git LFS pointer, not the file itself: run git lfs pull, or download the file",
        make=lambda: write("w.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ),
    Case(
        "a web page in place of the weights",
        finetune("uhkd/vit_micro", "--start w.pth"),
        "'w.pth' is a web page (HTML): the download got a page instead of the file; download it again",
        make=lambda: write("w.pth", "\n<!DOCTYPE html><title>Sign in</title>"),
    ),
    Case(
        "the index of weights in parts",
        finetune("uhkd/vit_micro", "--start w.json"),
        "'w.json' is JSON text, such as a configuration or the index of weights in parts; give a file that holds the weights",
        make=lambda: write("w.json", '{"weight_map": {}}'),
    ),
    Case(
        "weights of Keras",
        finetune("uhkd/vit_micro", "--start w.h5"),
        "'w.h5' is an HDF5 file, as Keras writes it; convert it to a PyTorch state dict first",
        make=lambda: write("w.h5", b"\x89HDF\r\n\x1a\n"),
    ),
    Case(
        "an empty weights file",
        finetune("uhkd/vit_micro", "--start w.pth"),
        "'w.pth' is empty; write, copy or download it again",
        make=lambda: write("w.pth", ""),
    ),
    Case(
        "the state of an optimizer as weights",
        finetune("uhkd/vit_micro", "--start w.pth"),
        "'w.pth' contains no named tensors: expected model.state_dict(), found a mapping of state, param_groups, the state of an "
        "optimizer",
        make=lambda: torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}, "w.pth"),
    ),
    Case(
        "a weights file with several networks",
        finetune("uhkd/vit_micro", "--start w.pth"),
        "'w.pth' holds several sets of weights (generator, critic); choose one with --weights-key, in distill "
        "--student-weights-key or --teacher-weights-key",
        make=lambda: torch.save({"generator": WEIGHTS, "critic": WEIGHTS}, "w.pth"),
    ),
    Case(
        "a misspelt key of the weights",
        finetune("uhkd/vit_micro", "--start w.pth --weights-key ema"),
        "'w.pth' has no weights under 'ema': found model, model_ema (--weights-key, in distill --student-weights-key or "
        "--teacher-weights-key)",
        make=lambda: torch.save({"model": WEIGHTS, "model_ema": WEIGHTS}, "w.pth"),
    ),
    Case(
        "a key of weights without a file",
        finetune("uhkd/vit_micro", "--weights-key model_ema"),
        "weights_key 'model_ema' names weights in a file: give the file as start, found random",
    ),
    Case(
        "a folder without weights as start",
        finetune("uhkd/vit_micro", "--start images"),
        "start must be random, pretrained or the path of a weights file; 'images' is a folder without card.json or config.json",
        has=("images",),
    ),
    Case(
        "weights of a training that diverged",
        finetune("uhkd/resnet10", "--start w.safetensors"),
        "the weights in 'w.safetensors' hold NaN (2 tensors, first: layer1.0.conv1.weight); use those of an earlier checkpoint",
        make=lambda: spoil(float("nan")),
    ),
    Case(
        "weights that overflowed",
        finetune("uhkd/resnet10", "--start w.safetensors"),
        "the weights in 'w.safetensors' hold infinite values (2 tensors, first: layer1.0.conv1.weight); use those of an earlier "
        "checkpoint",
        make=lambda: spoil(float("inf")),
    ),
    Case(
        "quantised weights",
        finetune("uhkd/resnet10", "--start w.safetensors"),
        "the weights in 'w.safetensors' are quantised (1 tensor, first: fc.weight); give those in full precision",
        make=lambda: changed_head(lambda head: {"fc.weight": head.to(torch.int8)}),
    ),
    Case(
        "a head in a Sequential",
        lambda: (
            changed_head(lambda head: {"fc.1.weight": head}),
            uhkd.models.create("uhkd/resnet10", num_classes=10, start="w.safetensors").notes[0],
        )[1],
        "'w.safetensors': read fc.1.bias, fc.1.weight as fc.bias, fc.weight",
        refused=False,
    ),
    Case(
        "a module whose weights are NaN",
        lambda: train_module(SICK),
        "the weights of Sequential hold NaN (1 tensor, first: 0.bias); use those of an earlier checkpoint",
    ),
    Case(
        "a module whose output is NaN",
        lambda: train_module(nn.Sequential(*small(3), Divided())),
        "Sequential gives NaN or infinite values (100% of its output) for images in [0,1]: check its forward pass, its number "
        "format and its weights",
    ),
    Case(
        "a student that ends with a softmax",
        lambda: train_module(nn.Sequential(*small(3), nn.Softmax(1))),
        "Sequential gives probabilities (each row is >= 0 with sum 1), expected class scores before softmax: the losses apply "
        "softmax themselves; remove it (module.set_submodule('4', torch.nn.Identity())), or return the logarithm of the "
        "probabilities",
    ),
    Case(
        "a student that ends with a sigmoid",
        lambda: train_module(nn.Sequential(*small(3), nn.Sigmoid())),
        "Sequential ends with a sigmoid, expected class scores before it: remove it (module.set_submodule('4', "
        "torch.nn.Identity()))",
    ),
    Case(
        "a teacher that ends with a softmax",
        lambda: uhkd.distill(
            teacher=nn.Sequential(*small(10), nn.Softmax(1)),
            student="uhkd/vit_micro",
            out="new",
            **SHORT | {"data": "digits"},
        ),
        "teacher: Sequential gives probabilities (each row is >= 0 with sum 1), expected class scores before softmax: …",
    ),
    Case(
        "a teacher whose output is NaN for the images of the data",
        lambda: uhkd.distill(teacher=Picky(), student="uhkd/vit_micro", out="new", **SHORT | {"data": "digits"}),
        "the teacher module/Picky gives NaN or infinite values for most validation images; try precision=fp32",
    ),
    Case(
        "a student without trainable parameters",
        lambda: train_module(nn.Sequential(*small(10)).requires_grad_(False), data="digits"),
        "the student Sequential has no trainable parameters (requires_grad is False for all, or there are none): call "
        "requires_grad_(True) on the layers to train",
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
        "a card.json with an impossible temperature",
        "eval run",
        "'run' cannot be used: card.json has temperature 0.0; expected a finite number above 0",
        has=("run",),
        make=lambda: card(temperature=0),
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
        "'run/model.safetensors' differs from its checksum in SHA256SUMS, so it is damaged or was changed; write, copy or "
        "download it again, or delete its line there if the change was meant",
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
        "'mine/model.safetensors' differs from its checksum in SHA256SUMS, so it is damaged or was changed; write, copy or "
        "download it again, or delete its line there if the change was meant",
        has=("images",),
        make=finished,
    ),
)
