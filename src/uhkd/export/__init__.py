"""A trained network in the formats of other programs; each is written, opened again and compared with PyTorch."""

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from uhkd.console import listed
from uhkd.errors import UhkdError
from uhkd.export import onnx_pt2, quantized, weights
from uhkd.export.module import ExportModule, ProgramOptions
from uhkd.export.temperature import apply_temperature, calibrated_logits
from uhkd.features import FeatureExtractor
from uhkd.recipe.arguments import Form

__all__ = [
    "FORMS",
    "QUANTIZED",
    "ExportModule",
    "Form",
    "Predictor",
    "ProgramOptions",
    "apply_temperature",
    "calibrated_logits",
    "check",
    "describe",
    "reopen",
    "write",
]

FORMS: tuple[Form, ...] = get_args(Form)
"""Names of all file forms."""
QUANTIZED: tuple[Form, ...] = ("int8", "onnx-int8")
"""Forms with 8-bit integers, whose outputs differ from PyTorch's."""
Predictor = Callable[[Float[Tensor, "b 3 h w"]], Tensor]
"""Images in [0,1] of the network's input size -> logits or embedding, (B, K)."""
_DEFAULT = ProgramOptions()
_FILES: dict[Form, tuple[Any, Any]] = {
    "safetensors": (weights.write_safetensors, weights.open_safetensors),
    "timm": (weights.write_timm, weights.open_timm),
    "pt2": (onnx_pt2.write_pt2, onnx_pt2.open_pt2),
    "onnx": (onnx_pt2.write_onnx, onnx_pt2.open_onnx),
    "openvino": (onnx_pt2.write_openvino, onnx_pt2.open_openvino),
    "int8": (quantized.write_int8, quantized.open_int8),
    "onnx-int8": (quantized.write_onnx_int8, onnx_pt2.open_onnx),
}
_ONNX = ("onnx", ("onnx", "onnxscript", "onnxruntime"))
_EXTRAS = {"onnx": _ONNX, "onnx-int8": _ONNX, "int8": ("int8", ("torchao",))}
_EXTRAS["openvino"] = ("openvino", ("onnx", "onnxscript", "openvino"))
_WEIGHTS: tuple[Form, ...] = ("safetensors", "timm")
_VARIABLE_SIZE: tuple[Form, ...] = ("pt2", "onnx", "openvino")


def write(
    form: Form,
    network: FeatureExtractor,
    folder: Path,
    calibration: Iterable[Tensor] = (),
    options: ProgramOptions = _DEFAULT,
) -> Path:
    """Write the network into `folder` and return the path to open: a file, or the folder itself.

    Args:
        form: its name.
        network: to write.
        folder: created if it does not exist.
        calibration: batches of images (B, 3, H, W) in [0,1] of the network's input size, for the quantised forms.
        options: for forms that contain a program.

    Raises:
        UhkdError: as `check`, or a network that torch cannot export.
    """
    check(form, network, options)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = () if form in _WEIGHTS else (options, calibration) if form in QUANTIZED else (options,)
    return _FILES[form][0](network.cpu().eval(), folder, *arguments)


def check(form: Form, network: FeatureExtractor, options: ProgramOptions = _DEFAULT) -> None:
    """Check, before anything is written, that a network can be exported to a form.

    Raises:
        UhkdError: the form does not support this network or these options, or a package is missing.
    """
    name = network.config.name
    if options.dynamic_size and form not in _VARIABLE_SIZE:
        raise UhkdError(
            f"--dynamic-size is for {listed(_VARIABLE_SIZE)}: leave {form} out of --to, or export it separately"
        )
    if network.probe is not None:
        raise UhkdError("a network with a linear probe in place of its head cannot be exported: finetune it first")
    if form == "timm" and network.config.temperature != 1:
        raise UhkdError(
            f"timm: the last layer of {name} is not linear and cannot take the temperature {network.config.temperature:.3g}: "
            "add --raw-logits, or leave timm out of --to"
        )
    if form == "timm" and not name.startswith("timm/"):
        raise UhkdError(f"{name} is no architecture of timm: leave timm out of --to")
    if form == "timm" and network.grey:
        raise UhkdError(f"{name} takes one channel, which timm's own transforms do not make: leave timm out of --to")
    if form in QUANTIZED and network.shapes.logits is None:
        raise UhkdError(f"{name} has no classes, and {form} is checked by its accuracy: leave {form} out of --to")
    extra, packages = _EXTRAS.get(form, ("", ()))
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UhkdError(f"{form}: the package {package} is missing: pip install 'uhkd[{extra}]'")


def describe(form: Form, path: Path, options: ProgramOptions) -> str:
    """Return sentences about an exported file: versions of its format, and variable dimensions."""
    version = onnx_pt2.describe_onnx(path) if form in ("onnx", "onnx-int8") else ""
    return f"{version} Height and width of the images are variable.".lstrip() if options.dynamic_size else version


def reopen(form: Form, path: Path) -> Predictor:
    """Open an exported file with the library that other programs would use."""
    return _FILES[form][1](path)
