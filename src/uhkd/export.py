"""A trained network alone, in forms that other programs open: each written, opened again, and asked the same images."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.models import ModelCard
from uhkd.runs import RunFolder, write_atomically, write_tensors
from uhkd.taps import TappedModel
from uhkd.taps.quiet import first_tensor

Form = Literal["safetensors", "timm", "pt2", "onnx"]
"""A form that `write` knows."""
FORMS: tuple[Form, ...] = ("safetensors", "timm", "pt2", "onnx")
"""All of them."""
Answer = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b k"]]
"""An exported network as a function: images (B, 3, H, W) in [0, 1] -> logits (B, K)."""
_LARGEST_BATCH = 1024


class Deployed(nn.Module):
    """Images in [0,1] of the network's own size -> logits, normalisation included: (B,3,H,W) -> (B,K).

    Of a network without head: the embedding that it ends with, (B,D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: TappedModel) -> None:
        super().__init__()
        self.module = network.module
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits (B, K) of images (B, 3, H, W)."""
        logits = first_tensor(self.module((image - self.mean) / self.std))
        assert logits is not None
        return logits


def write(form: Form, network: TappedModel, folder: Path) -> Path:
    """Write the network into `folder` and return what is to be opened: a file, or the folder itself.

    Raises:
        ValueError: as `check`, or a network that torch cannot follow.
    """
    check(form, network)
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().eval()
    return {"safetensors": _safetensors, "timm": _timm, "pt2": _pt2, "onnx": _onnx}[form](network, folder)


def check(form: Form, network: TappedModel) -> None:
    """See, before anything is written, whether a form can hold a network.

    Raises:
        ValueError: a network that it cannot hold, or a package that is missing.
    """
    if network.probe is not None:
        raise ValueError("a network with a linear probe in place of its head cannot be exported: finetune it first")
    if form == "timm" and not network.card.name.startswith("timm/"):
        raise ValueError(f"{network.card.name} is no architecture of timm: leave timm out of --to")
    for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"onnx: the package {package} is missing: pip install 'uhkd[onnx]'")


def reopen(form: Form, path: Path) -> Answer:
    """What answers images by the file alone, through the library that others would use."""
    return {"safetensors": _by_uhkd, "timm": _by_timm, "pt2": _by_export, "onnx": _by_onnxruntime}[form](path)


def answer_of(network: TappedModel) -> Answer:
    """What a network answers in PyTorch: its logits, or its embedding where it has no head."""
    field = "logits" if network.shapes.logits else "embedding"
    return lambda image: getattr(network(image, frozenset({field})), field)


def _safetensors(network: TappedModel, folder: Path) -> Path:
    """card.json and model.safetensors, the module's own names: what `uhkd.load_run` reads."""
    run = RunFolder(folder)
    run.write_model(network.card.to_json(), network.module.state_dict())
    return folder


def _by_uhkd(path: Path) -> Answer:
    from uhkd.models import load_run

    return answer_of(load_run(path))


def _timm(network: TappedModel, folder: Path) -> Path:
    """config.json and model.safetensors: `timm.create_model("local-dir:FOLDER")`."""
    card: ModelCard = network.card
    name = card.name.removeprefix("timm/")
    height, width = card.image_size
    cfg: dict[str, Any] = getattr(network.module, "pretrained_cfg", None) or {}
    arguments = dict(card.options)
    if cfg.get("fixed_input_size"):
        arguments["img_size"] = [height, width]
    config = {
        "architecture": name.partition(".")[0],
        "num_classes": card.num_classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "fixed_input_size": bool(cfg.get("fixed_input_size")),
            "interpolation": card.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(card.mean),
            "std": list(card.std),
            "num_classes": card.num_classes,
            "custom_load": False,
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
        },
    }
    if card.classes:
        config["label_names"] = list(card.classes)
    write_atomically(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    write_tensors(folder / "model.safetensors", network.module.state_dict())
    return folder


def _by_timm(path: Path) -> Answer:
    import timm

    module = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    cfg: Any = module.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return lambda image: module((image - mean) / std)


def _exported(network: TappedModel) -> torch.export.ExportedProgram:
    # two images: a batch of one would be taken for a constant
    image = torch.rand(2, 3, *network.input_size, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    try:
        return torch.export.export(Deployed(network).eval(), (image,), dynamic_shapes={"image": {0: batch}})
    except Exception as error:  # a network of anyone's: whatever torch cannot follow
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"torch cannot follow {type(network.module).__name__} with a batch of any size ({why}): export it as safetensors"
        ) from error


def _pt2(network: TappedModel, folder: Path) -> Path:
    """model.pt2: `torch.export.load(FILE).module()`; the card lies in it as card.json."""
    file = folder / "model.pt2"
    temporary = folder / ".model.pt2"
    torch.export.save(_exported(network), temporary, extra_files={"card.json": _card(network)})
    temporary.replace(file)
    return file


def _by_export(path: Path) -> Answer:
    return torch.export.load(path).module()


def _onnx(network: TappedModel, folder: Path) -> Path:
    """model.onnx: input "image", output "logits" (or "embedding"), any batch; the card is its metadata's "uhkd.card"."""
    import onnx

    file = folder / "model.onnx"
    program = _exported(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and onnxscript warn of their own calls
        said = ["logits" if network.shapes.logits else "embedding"]
        made = torch.onnx.export(program, input_names=["image"], output_names=said, dynamo=True, verbose=False)
    assert made is not None
    model = made.model_proto
    onnx.helper.set_model_props(
        model, {"uhkd.card": _card(network), "uhkd.classes": json.dumps(list(network.card.classes))}
    )
    write_atomically(file, model.SerializeToString())
    return file


def _by_onnxruntime(path: Path) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _card(network: TappedModel) -> str:
    return json.dumps(network.card.to_json(), ensure_ascii=False)
