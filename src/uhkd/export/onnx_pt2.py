"""Forms that are a program: no library of networks is needed to run them; torch.export's file and ONNX."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uhkd.export.module import card_json, output_name, program_of
from uhkd.features import FeatureExtractor
from uhkd.runs import write_atomically


def write_pt2(network: FeatureExtractor, folder: Path) -> Path:
    """model.pt2: `torch.export.load(FILE).module()`; the card lies in it as card.json."""
    return save_program(program_of(network), network, folder / "model.pt2")


def save_program(program: torch.export.ExportedProgram, network: FeatureExtractor, file: Path) -> Path:
    """A program and the network's card in one file, whole or not there."""
    temporary = file.with_name(f".{file.name}")
    torch.export.save(program, temporary, extra_files={"card.json": card_json(network)})
    temporary.replace(file)
    return file


def open_pt2(path: Path) -> Any:
    """What torch alone opens."""
    return torch.export.load(path).module()


def write_onnx(network: FeatureExtractor, folder: Path) -> Path:
    """model.onnx: input "image", output "logits" (or "embedding"), any batch; the card is its metadata's "uhkd.card"."""
    program = program_of(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and onnxscript warn of their own calls
        made = torch.onnx.export(
            program, input_names=["image"], output_names=[output_name(network)], dynamo=True, verbose=False
        )
    assert made is not None
    return save_onnx(made.model_proto, network, folder / "model.onnx")


def save_onnx(model: Any, network: FeatureExtractor, file: Path) -> Path:
    """An ONNX model with the network's card and class names as metadata."""
    import onnx

    onnx.helper.set_model_props(
        model, {"uhkd.card": card_json(network), "uhkd.classes": json.dumps(list(network.card.classes))}
    )
    write_atomically(file, model.SerializeToString())
    return file


def open_onnx(path: Path) -> Any:
    """What onnxruntime opens, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

    return answer
