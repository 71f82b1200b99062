"""How each form is opened and run: one line for a table, a whole example for a card. Each example names its own library alone."""

from pathlib import Path

from uhkd.export.module import output_name
from uhkd.features import FeatureExtractor
from uhkd.recipe.arguments import Form

_OPENED: dict[Form, str] = {
    "safetensors": "uhkd.load_run({where})",
    "timm": "timm.create_model({where}, pretrained=True).eval()",
    "pt2": "torch.export.load({where}).module()",
    "onnx": "onnxruntime.InferenceSession({where})",
    "int8": "torch.export.load({where}).module()  # after: import torchao.quantization.pt2e.quantize_pt2e",
    "onnx-int8": "onnxruntime.InferenceSession({where})",
}
_WITHIN = "images in [0, 1] of {size}, float32 (B, 3, H, W), any B{most}; normalisation is inside"
_TAKES: dict[Form, str] = {
    "safetensors": "images in [0, 1] of any size, (B, 3, H, W); it resizes and normalises by itself",
    "timm": "normalised images; `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them",
    "pt2": _WITHIN.replace("{most}", " up to 1,024"),
    "onnx": f"`image`: {_WITHIN.replace('{most}', '')}. Output: `{{output}}`",
    "int8": _WITHIN.replace("{most}", " up to 1,024"),
    "onnx-int8": f"`image`: {_WITHIN.replace('{most}', '')}. Output: `{{output}}`",
}

_FITTED = """\
image = ImageOps.fit(Image.open("some.jpg").convert("RGB"), ({width}, {height}), Image.Resampling.{filter})
image = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
"""
_TORCH = """\
import json

import numpy as np
import torch
{more}from PIL import Image, ImageOps

files = {{"card.json": ""}}
model = torch.export.load({where}, extra_files=files).module()
{fitted}\
with torch.no_grad():
    answer = model(torch.from_numpy(image))[0]
{said}"""
_ONNX = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession({where})
{fitted}\
answer = session.run(None, {{"image": image}})[0][0]
{said}"""
_EXAMPLES: dict[Form, str] = {
    "safetensors": """\
import uhkd

{said}""",
    "timm": """\
import timm
import torch
from PIL import Image

model = timm.create_model({where}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    answer = model(transform(Image.open("some.jpg").convert("RGB"))[None])[0]
{said}""",
    "pt2": _TORCH.replace("{more}", ""),
    "onnx": _ONNX,
    "int8": _TORCH.replace("{more}", "import torchao.quantization.pt2e.quantize_pt2e  # its operators\n"),
    "onnx-int8": _ONNX,
}
_NAMES: dict[Form, str] = {
    "timm": 'model.pretrained_cfg["label_names"]',
    "pt2": 'json.loads(files["card.json"])["classes"]',
    "onnx": 'json.loads(session.get_modelmeta().custom_metadata_map["uhkd.classes"])',
    "int8": 'json.loads(files["card.json"])["classes"]',
    "onnx-int8": 'json.loads(session.get_modelmeta().custom_metadata_map["uhkd.classes"])',
}


def here(form: Form, path: Path | str) -> str:
    """A place on this machine as the examples write it."""
    return f'"local-dir:{path}"' if form == "timm" else f'"{path}"'


def on_hub(form: Form, repo: str, file: str) -> str:
    """A place on a hub as the examples write it; all but timm fetch it by huggingface_hub first."""
    if form == "timm":
        return f'"hf-hub:{repo}"'
    return f'snapshot_download("{repo}")' if form == "safetensors" else f'hf_hub_download("{repo}", "{file}")'


def opened(form: Form, where: str) -> str:
    """The expression that opens a form."""
    return _OPENED[form].format(where=where)


def takes(form: Form, network: FeatureExtractor) -> str:
    """What a form is fed, in words."""
    height, width = network.card.image_size
    return _TAKES[form].format(size=f"{height} x {width} pixels", output=output_name(network))


def example(form: Form, network: FeatureExtractor, where: str) -> str:
    """Python that names the class of `some.jpg` (of a network without classes' names: the shape of what it answers)."""
    height, width = network.card.image_size
    values = {"height": height, "width": width, "filter": network.card.interpolation.upper(), "where": where}
    if form == "safetensors":
        named = 'uhkd.predict(run={where}, images=["some.jpg"])'
        code = (named if network.card.classes else f"model = {_OPENED[form]}").format(where=where)
    else:
        code = f"print({_NAMES[form]}[int(answer.argmax())])" if network.card.classes else "print(answer.shape)"
    fetched = next((name for name in ("snapshot_download", "hf_hub_download") if where.startswith(name)), None)
    fetching = f"from huggingface_hub import {fetched}\n" if fetched else ""
    return fetching + _EXAMPLES[form].format(**values, fitted=_FITTED.format(**values), code=code)
