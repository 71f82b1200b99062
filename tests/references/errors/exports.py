"""Networks that leave: export and push."""

from dataclasses import replace

import torch
from torch import nn

from references.errors.case import Case
from references.errors.shelf import write
from uhkd import export as forms
from uhkd.models import wrap_module
from uhkd.reporting.health import calibration_messages

RUN = {"has": ("run",)}


class Tanh(nn.Module):
    """A network with a layer after its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3))).tanh()


def not_linear() -> None:
    network = wrap_module(Tanh(), num_classes=4, image_size=16, levels=0)
    network.config = replace(network.config, temperature=2.0)
    forms.apply_temperature(network)
    forms.check("timm", network)


def too_sure() -> str:
    return calibration_messages({"after": {"gap": {"value": 0.2, "low": 0.12, "high": 0.28}}})[0]


CASES = (
    Case(
        "exporting a folder that is not a run",
        "export images",
        "'images' is no run folder of uhkd: it lacks card.json or model.safetensors; give a folder that "
        "finetune or distill wrote",
        has=("images",),
    ),
    Case(
        "an unknown form",
        "export run --to tflite",
        "to: expected safetensors, timm, pt2, onnx, openvino, int8 or onnx-int8, found 'tflite'",
        **RUN,
    ),
    Case(
        "the form timm of a network of another library",
        "export run --to timm",
        "uhkd/resnet10 is no architecture of timm: leave timm out of --to",
        **RUN,
    ),
    Case(
        "the form timm of a network whose last layer cannot take the temperature of its run",
        lambda: not_linear(),
        "timm: the last layer of module/Tanh is not linear and cannot take the temperature 2: add --raw-logits, or leave timm "
        "out of --to",
    ),
    Case(
        "probabilities that stay bad with the temperature",
        too_sure,
        "probabilities too high: confidence minus accuracy is +20.0 points on held-out images (+12.0 to +28.0)",
        refused=False,
    ),
    Case(
        "a form that exists already",
        "export run --to pt2",
        "run/export/pt2 already exists and is not empty; delete it, or choose another --out",
        **RUN,
        make=lambda: write("run/export/pt2/model.pt2", "hello"),
    ),
    Case(
        "exporting when the images have moved",
        "export run",
        "data images does not exist; give a path, or one of: digits, cifar100",
        **RUN,
    ),
    Case(
        "exporting with a part of the images that does not exist",
        "export run --data images --val-dir dev",
        "val_dir: no such folder: images/dev; folders in images: ant, bee, cat",
        has=("run", "images"),
    ),
    Case(
        "pushing with a column that does not exist",
        "push run --repo me/student --dry-run --data labels.csv --label-column species",
        "labels.csv has no column species: choose one of label with --label-column",
        **RUN,
        make=lambda: write("labels.csv", "image,label\nimages/ant/0.png,ant"),
    ),
    Case(
        "an opset for a form that has none",
        "export run --to pt2 --opset 18",
        "--opset is for onnx and onnx-int8, and --to has pt2: remove --opset, or add onnx",
        **RUN,
    ),
    Case(
        "a variable image size in 8-bit integers",
        "export run --to int8 --dynamic-size",
        "--dynamic-size is for pt2, onnx, openvino: leave int8 out of --to, or export it separately",
        **RUN,
    ),
    Case(
        "max_drop above 100",
        "export run --to int8 --max-drop 200",
        "max_drop: expected a value <= 100, found '200'",
        **RUN,
    ),
    Case("pushing without a repository", "push run", "repo: required but not given (…)", **RUN),
    Case(
        "pushing without an owner",
        "push run --repo student --dry-run",
        "repo: expected OWNER/NAME of letters, numbers and ._-, as in me/my-student",
        **RUN,
    ),
    Case(
        "pushing to an unknown target",
        "push run --repo me/student --to s3",
        "to: expected hub, found 's3'",
        **RUN,
    ),
)
