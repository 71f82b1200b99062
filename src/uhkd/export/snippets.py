"""Python code that opens and runs each form, for log lines and model cards; it imports only the library of the form."""

from pathlib import Path

from uhkd.data.resize import BORDER
from uhkd.export.module import output_name
from uhkd.features import FeatureExtractor
from uhkd.recipe import Resize
from uhkd.recipe.arguments import Form

_TORCHAO = "import torchao.quantization.pt2e.quantize_pt2e"
_OPEN: dict[str, str] = {
    "safetensors": "uhkd.load_run({location})",
    "timm": "timm.create_model({location}, pretrained=True).eval()",
    "pt2": "torch.export.load({location}).module()",
    "onnx": "onnxruntime.InferenceSession({location})",
    "openvino": 'openvino.Core().compile_model({location}, "CPU")',
}
_PROGRAM_INPUT = "images in [0, 1] of {size}, float32 (B, 3, H, W), any B{limit}; normalisation is inside"
_INPUT: dict[str, str] = {
    "safetensors": "images in [0, 1] of any size, (B, 3, H, W); it resizes and normalises them",
    "timm": "normalised images; `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them",
    "pt2": _PROGRAM_INPUT.replace("{limit}", " up to 1,024"),
    "onnx": f"`image`: {_PROGRAM_INPUT.replace('{limit}', '')}. Output: `{{output}}`",
    "openvino": _PROGRAM_INPUT.replace("{limit}", ""),
}
_RESIZE: dict[Resize, str] = {
    "crop": "ImageOps.fit(image, ({width}, {height}), Image.Resampling.{filter})",
    "squash": "image.resize(({width}, {height}), Image.Resampling.{filter})",
    "pad": f"ImageOps.pad(image, ({{width}}, {{height}}), Image.Resampling.{{filter}}, color={BORDER})",
}
_LOAD_IMAGE = """\
image = Image.open("some.jpg").convert("RGB")
image = {fitted}
image = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
"""
_EXAMPLES: dict[str, str] = {
    "safetensors": "import uhkd\n\n{show}",
    "timm": """\
import timm
import torch
from PIL import Image

model = {open}
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    answer = model(transform(Image.open("some.jpg").convert("RGB"))[None])[0]
{show}""",
    "pt2": """\
import json

import numpy as np
import torch
{torchao}from PIL import Image, ImageOps

files = {{"card.json": ""}}
model = torch.export.load({location}, extra_files=files).module()
{load_image}\
with torch.no_grad():
    answer = model(torch.from_numpy(image))[0]
{show}""",
    "onnx": """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = {open}
{load_image}\
answer = session.run(None, {{"image": image}})[0][0]
{show}""",
    "openvino": """\
import json

import numpy as np
import openvino
from PIL import Image, ImageOps

model = {open}
{load_image}\
answer = model(image)[0][0]
{show}""",
}
_CLASS_NAMES: dict[str, str] = {
    "timm": 'model.pretrained_cfg["label_names"]',
    "pt2": 'json.loads(files["card.json"])["classes"]',
    "onnx": 'json.loads(session.get_modelmeta().custom_metadata_map["uhkd.classes"])',
    "openvino": 'json.loads(openvino.Core().read_model({location}).get_rt_info(["uhkd", "classes"]).value)',
}


def _float_form(form: Form) -> str:
    return {"int8": "pt2", "onnx-int8": "onnx"}.get(form, form)


def local_location(form: Form, path: Path | str) -> str:
    """Return the Python expression for a path on this machine."""
    return f'"local-dir:{path}"' if form == "timm" else f'"{path}"'


def hub_location(form: Form, repo: str, file: str) -> str:
    """Return the Python expression for a file on the hub; all forms but timm download it with huggingface_hub first."""
    if form == "timm":
        return f'"hf-hub:{repo}"'
    if form == "openvino":  # its weights are in a second file
        return f'snapshot_download("{repo}") + "/{file}"'
    return f'snapshot_download("{repo}")' if form == "safetensors" else f'hf_hub_download("{repo}", "{file}")'


def open_expression(form: Form, location: str) -> str:
    """Return the Python expression that opens a form."""
    code = _OPEN[_float_form(form)].format(location=location)
    return f"{code}  # after: {_TORCHAO}" if form == "int8" else code


def input_description(form: Form, network: FeatureExtractor) -> str:
    """Return a phrase that describes the input of a form."""
    height, width = network.config.image_size
    return _INPUT[_float_form(form)].format(size=f"{height} x {width} pixels", output=output_name(network))


def example(form: Form, network: FeatureExtractor, location: str) -> str:
    """Return a program that prints the class of `some.jpg`, or the shape of the output if there are no class names."""
    height, width = network.config.image_size
    values = {"height": height, "width": width, "filter": network.config.interpolation.upper(), "location": location}
    values["fitted"] = _RESIZE[network.config.resize].format(**values)
    if form == "safetensors":
        predict = f'uhkd.predict(run={location}, images=["some.jpg"])'
        show = predict if network.config.classes else f"model = {open_expression(form, location)}"
    elif network.config.classes:
        names = _CLASS_NAMES[_float_form(form)].replace("{location}", location)
        show = f"print({names}[int(answer.argmax())])"
    else:
        show = "print(answer.shape)"
    values |= {"show": show, "open": open_expression(form, location), "load_image": _LOAD_IMAGE.format(**values)}
    values["torchao"] = f"{_TORCHAO}  # its operators\n" if form == "int8" else ""
    download = next((name for name in ("snapshot_download", "hf_hub_download") if location.startswith(name)), None)
    imports = f"from huggingface_hub import {download}\n" if download else ""
    return imports + _EXAMPLES[_float_form(form)].format(**values)
