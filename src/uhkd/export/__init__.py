"""A trained network alone, in forms that other programs open: each written, opened again, and asked the same images."""

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from uhkd.errors import UhkdError
from uhkd.export import onnx_pt2, quantized, weights
from uhkd.export.module import ExportModule
from uhkd.features import FeatureExtractor
from uhkd.recipe.arguments import Form

__all__ = ["FORMS", "QUANTIZED", "Answer", "ExportModule", "Form", "check", "reopen", "write"]

FORMS: tuple[Form, ...] = get_args(Form)
"""The forms that a network can be written in."""
QUANTIZED: tuple[Form, ...] = ("int8", "onnx-int8")
"""Those of 8-bit integers, which answer a little otherwise."""
Answer = Callable[[Float[Tensor, "b 3 h w"]], Tensor]
"""Images in [0,1] of the network's own size -> logits or embedding, (B, K)."""
_NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxscript", "onnxruntime"),
    "int8": ("torchao",),
}
_EXTRAS = {"onnx": "onnx", "onnx-int8": "onnx", "int8": "int8"}


def write(form: Form, network: FeatureExtractor, folder: Path, calibration: Iterable[Tensor] = ()) -> Path:
    """Write the network into `folder` and return what is to be opened: a file, or the folder itself.

    calibration: batches of images (B, 3, H, W) in [0,1] of the network's size, which the quantised forms need.

    Raises:
        UhkdError: as `check`, or a network that torch cannot follow.
    """
    check(form, network)
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().eval()
    if form in QUANTIZED:
        make: Any = quantized.write_int8 if form == "int8" else quantized.write_onnx_int8
        return make(network, folder, calibration)
    makers: dict[str, Any] = {"safetensors": weights.write_safetensors, "timm": weights.write_timm}
    makers |= {"pt2": onnx_pt2.write_pt2, "onnx": onnx_pt2.write_onnx}
    return makers[form](network, folder)


def check(form: Form, network: FeatureExtractor) -> None:
    """See, before anything is written, whether a form can hold a network.

    Raises:
        UhkdError: a network that it cannot hold, or a package that is missing.
    """
    if network.probe is not None:
        raise UhkdError("a network with a linear probe in place of its head cannot be exported: finetune it first")
    if form == "timm" and not network.card.name.startswith("timm/"):
        raise UhkdError(f"{network.card.name} is no architecture of timm: leave timm out of --to")
    if form in QUANTIZED and network.shapes.logits is None:
        raise UhkdError(
            f"{network.card.name} has no classes, by whose accuracy {form} is judged: leave {form} out of --to"
        )
    for package in _NEEDS.get(form, ()):
        if importlib.util.find_spec(package) is None:
            raise UhkdError(f"{form}: the package {package} is missing: pip install 'uhkd[{_EXTRAS[form]}]'")


def reopen(form: Form, path: Path) -> Answer:
    """What answers images by the file alone, through the library that others would use."""
    openers: dict[str, Any] = {"safetensors": weights.open_safetensors, "timm": weights.open_timm}
    openers |= {"pt2": onnx_pt2.open_pt2, "onnx": onnx_pt2.open_onnx}
    openers |= {"int8": quantized.open_int8, "onnx-int8": onnx_pt2.open_onnx}
    return openers[form](path)
