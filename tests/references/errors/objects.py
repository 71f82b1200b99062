"""Networks passed as objects."""

import contextlib
import io
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

import uhkd
from references.errors.case import Case
from references.errors.shelf import WORDS
from uhkd.models import wrap_module
from uhkd.training.ema import check_decay

SHORT = {name: word for name, word in WORDS.items() if name != "options"} | {"data": "digits", "train_limit": 40}


class Two(nn.Module):
    """A small network; in training mode it also gives the output of an auxiliary head, or fails."""

    def __init__(self, training: str) -> None:
        super().__init__()
        self.stem, self.head, self.aux = nn.Conv2d(3, 4, 3), nn.Linear(4, 10), nn.Linear(4, 10)
        self.kind = training

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x).mean((2, 3))
        if self.training and self.kind == "fails":
            raise NotImplementedError("this backbone is frozen")
        if self.training and self.kind == "narrow":
            return self.head(x)[:, :5]
        if self.kind == "detached":
            return self.head(x).detach()
        first, second = self.head(x), self.aux(x)
        if not self.training:
            return first
        return (second, first) if self.kind == "aux first" else (first, second)


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 10))


def train(model: object, **words: object) -> object:
    return uhkd.finetune(model=model, out="new", **SHORT | words)


def said(call) -> str:
    """The last line on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        call()
    return err.getvalue().strip().splitlines()[-1]


def changed(**fields: object) -> None:
    """Change run/card.json."""
    file = Path("run/card.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def compiled_in_place() -> nn.Module:
    module = flat()
    module.compile(backend="eager")
    return module


CASES = (
    Case(
        "a network compiled by torch.compile",
        lambda: train(torch.compile(flat(), backend="eager")),
        "its layers cannot be read through torch.compile: pass the network itself (module._orig_mod); compile=True compiles "
        "the training",
    ),
    Case(
        "a network after module.compile()",
        lambda: train(compiled_in_place()),
        "its layers cannot be read through torch.compile: leave out module.compile(); compile=True compiles the training",
    ),
    Case(
        "a network in DataParallel",
        lambda: train(nn.DataParallel(flat())),
        "the network is wrapped by DataParallel: pass module.module; torchrun trains on several GPUs",
    ),
    Case(
        "a network on the meta device",
        lambda: train(flat().to("meta")),
        "Sequential is on the meta device, without weights: module.to_empty(device='cpu'), then load weights",
    ),
    Case(
        "a class in place of a network",
        lambda: train(Two),
        "expected a network, found the class Two: build it first, Two(...)",
    ),
    Case(
        "a state dict in place of a network",
        lambda: train(flat().state_dict()),
        "expected a network (torch.nn.Module) or its name, found a OrderedDict; build the network and load these weights with "
        "load_state_dict",
    ),
    Case(
        "a network that does not run in training mode",
        lambda: train(Two("fails")),
        "Two works in eval mode, but not in training mode on images of 16x16 px: this backbone is frozen",
    ),
    Case(
        "a network that computes without gradients",
        lambda: train(Two("detached")),
        "the output of Two has no gradient: remove no_grad or detach from its forward",
    ),
    Case(
        "a network with layers whose weights do not exist yet",
        lambda: train(nn.Sequential(nn.Flatten(), nn.LazyLinear(10))),
        "Sequential has lazy layers without weights yet: run it on a batch of images first",
    ),
    Case(
        "a network that normalises images itself",
        lambda: wrap_module(
            nn.Sequential(Normalize([0.5] * 3, [0.2] * 3), *flat()), num_classes=10, image_size=16
        ).notes[-1],
        "Sequential gets images in [0,1], without normalisation",
        refused=False,
    ),
    Case(
        "a network with another number of outputs in training mode",
        lambda: train(Two("narrow")),
        "Two gives (2, 5) in training mode, expected (images, 10) as in eval mode",
    ),
    Case(
        "a network whose auxiliary head comes first in training mode",
        lambda: train(Two("aux first")),
        "the first output of Two in training mode is not that of its last layer head, as in eval mode: return it first, or "
        "under the name logits, and outputs of auxiliary heads after it",
    ),
    Case(
        "a network without feature maps, and a method that compares spectra",
        lambda: uhkd.Distillation(flat(), flat(), num_classes=10, image_size=16),
        "spectra are of feature maps, and the student has none: choose a method that reads logits (kd, dist) or embeddings "
        "(rkd, rsd)",
    ),
    Case(
        "a network without feature maps, and a method that compares logits",
        lambda: sorted(
            uhkd.Distillation(flat(), flat(), method="kd", num_classes=10, image_size=16)(
                torch.rand(2, 3, 16, 16), torch.arange(2)
            )[1]
        ),
        "['ce', 'kd.kl']",
        refused=False,
    ),
    Case(
        "an average of the weights that is longer than the training",
        lambda: said(lambda: check_decay(0.9999, 80)),
        "warning: ema_decay 0.9999 averages over about 10,000 steps, and the training has 80: 99% of the saved weights will be "
        "the initial ones; use at most --ema-decay 0.944",
        refused=False,
    ),
    Case(
        "an image size beyond the memory",
        lambda: train(Two(""), image_size=3_000_000),
        "Two cannot process images of 3000000x3000000 px: not enough memory",
    ),
    Case(
        "a card.json with an empty list as an option",
        lambda: (changed(options={"channels": []}), uhkd.load_run("run")),
        "uhkd/resnet10 cannot be built for images of 16x16 px: list index out of range",
        has=("run",),
    ),
    Case(
        "a recipe.yaml of a run with a list in place of data",
        lambda: (Path("run/recipe.yaml").write_text("data: []\n"), uhkd.evaluate(run="run")),
        "run/recipe.yaml is damaged: data: expected text, found []",
        has=("run",),
    ),
)
