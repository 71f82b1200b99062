"""Forms that contain weights and a description from which a library builds the network: safetensors and timm."""

import json
from pathlib import Path
from typing import Any

import torch

from uhkd.export.temperature import calibrated_logits
from uhkd.features import FeatureExtractor
from uhkd.models import ModelConfig
from uhkd.runs import RunFolder, write_atomically, write_tensors

_CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}  # timm's names


def write_safetensors(network: FeatureExtractor, folder: Path) -> Path:
    """Write card.json and model.safetensors (names as in the module), for `uhkd.load_run`."""
    RunFolder(folder).write_model(network.config.to_json(), network.module.state_dict())
    return folder


def open_safetensors(path: Path) -> Any:
    """Open with uhkd; the network resizes and normalises its images."""
    from uhkd.models import load_run

    network = load_run(path)
    return lambda image: calibrated_logits(network, image)


def write_timm(network: FeatureExtractor, folder: Path) -> Path:
    """Write config.json and model.safetensors, for `timm.create_model("local-dir:FOLDER")`."""
    model: ModelConfig = network.config
    size = list(model.image_size)
    cfg: dict[str, Any] = getattr(network.module, "pretrained_cfg", None) or {}
    config = {
        "architecture": model.name.removeprefix("timm/").partition(".")[0],
        "num_classes": model.num_classes,
        "model_args": model.options | ({"img_size": size} if cfg.get("fixed_input_size") else {}),
        "pretrained_cfg": {
            "input_size": [3, *size],
            "fixed_input_size": bool(cfg.get("fixed_input_size")),
            "interpolation": model.interpolation,
            "crop_pct": 1.0,
            "crop_mode": _CROP_MODES[model.resize],
            "mean": list(model.mean),
            "std": list(model.std),
            "num_classes": model.num_classes,
            "custom_load": False,
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
        },
    }
    if model.classes:
        config["label_names"] = list(model.classes)
    write_atomically(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    write_tensors(folder / "model.safetensors", network.module.state_dict())
    return folder


def open_timm(path: Path) -> Any:
    """Open with timm, and normalise images with the mean and std that timm read."""
    import timm

    module = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    cfg: Any = module.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return lambda image: module((image - mean) / std)
