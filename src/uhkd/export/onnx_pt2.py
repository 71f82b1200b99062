"""Forms that contain the program of the network: a file of torch.export, and ONNX."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from uhkd.export.module import config_json, output_name, program_of
from uhkd.features import FeatureExtractor
from uhkd.runs import write_atomically


def write_pt2(network: FeatureExtractor, folder: Path) -> Path:
    """Write model.pt2, for `torch.export.load(FILE).module()`."""
    return save_program(program_of(network), network, folder / "model.pt2")


def save_program(program: torch.export.ExportedProgram, network: FeatureExtractor, file: Path) -> Path:
    """Write a program atomically, with the network's configuration as the extra file card.json."""
    temporary = file.with_name(f".{file.name}")
    torch.export.save(program, temporary, extra_files={"card.json": config_json(network)})
    temporary.replace(file)
    return file


def open_pt2(path: Path) -> Any:
    """Open a program of torch.export."""
    return torch.export.load(path).module()


def write_onnx(network: FeatureExtractor, folder: Path) -> Path:
    """Write model.onnx for any batch size: input "image", output "logits" (or "embedding")."""
    program = program_of(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch and onnxscript
        exported = torch.onnx.export(
            program, input_names=["image"], output_names=[output_name(network)], dynamo=True, verbose=False
        )
    assert exported is not None
    return save_onnx(exported.model_proto, network, folder / "model.onnx")


def save_onnx(model: Any, network: FeatureExtractor, file: Path) -> Path:
    """Write an ONNX model with the metadata "uhkd.card" and "uhkd.classes"."""
    import onnx

    onnx.helper.set_model_props(
        model, {"uhkd.card": config_json(network), "uhkd.classes": json.dumps(list(network.config.classes))}
    )
    write_atomically(file, model.SerializeToString())
    return file


def open_onnx(path: Path) -> Any:
    """Open an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
