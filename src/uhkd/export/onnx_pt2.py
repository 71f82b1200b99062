"""Forms that contain the program of the network: a file of torch.export, ONNX, and OpenVINO."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from uhkd.errors import UhkdError
from uhkd.export.module import ProgramOptions, config_json, output_name, program_of
from uhkd.features import FeatureExtractor
from uhkd.runs import write_atomically


def write_pt2(network: FeatureExtractor, folder: Path, options: ProgramOptions) -> Path:
    """Write model.pt2, for `torch.export.load(FILE).module()`."""
    return save_program(program_of(network, options.dynamic_size), network, folder / "model.pt2")


def save_program(program: torch.export.ExportedProgram, network: FeatureExtractor, file: Path) -> Path:
    """Write a program atomically, with the network's configuration as the extra file card.json."""
    temporary = file.with_name(f".{file.name}")
    torch.export.save(program, temporary, extra_files={"card.json": config_json(network)})
    temporary.replace(file)
    return file


def open_pt2(path: Path) -> Any:
    """Open a program of torch.export."""
    return torch.export.load(path).module()


def write_onnx(network: FeatureExtractor, folder: Path, options: ProgramOptions) -> Path:
    """Write model.onnx for any batch size: input "image", output "logits" (or "embedding").

    Raises:
        UhkdError: torch cannot export the network, or not with the opset.
    """
    import onnx

    if (options.opset or 0) > (newest := onnx.defs.onnx_opset_version()):
        raise UhkdError(f"onnx {onnx.__version__} has opsets up to {newest}, --opset is {options.opset}")
    program = program_of(network, options.dynamic_size)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": [output_name(network)]}
    with _quiet():
        exported = torch.onnx.export(program, **names, opset_version=options.opset, dynamo=True, verbose=False)
    assert exported is not None
    written = opset_of(exported.model_proto)
    if options.opset not in (None, written):  # torch leaves a model that it cannot convert as it is
        raise UhkdError(
            f"this network cannot be written with opset {options.opset}: leave out --opset, or use {written} (or more)"
        )
    return save_onnx(exported.model_proto, network, folder / "model.onnx")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence deprecations inside torch and onnxscript, and their traces of a failed conversion of the opset."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def opset_of(model: Any) -> int:
    """Return the version of the standard operators of an ONNX model."""
    return next(entry.version for entry in model.opset_import if not entry.domain)


def describe_onnx(path: Path) -> str:
    """Return a sentence with opset and IR version of an ONNX file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return f"ONNX opset {opset_of(model)}, IR version {model.ir_version}."


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


def write_openvino(network: FeatureExtractor, folder: Path, options: ProgramOptions) -> Path:
    """Write model.xml and model.bin in float32, with the configuration as runtime information "uhkd"."""
    import openvino

    with tempfile.TemporaryDirectory() as temporary:  # read_model, unlike convert_model, sends no telemetry
        model = openvino.Core().read_model(write_onnx(network, Path(temporary), options))
        model.set_rt_info(config_json(network), ["uhkd", "card"])
        model.set_rt_info(json.dumps(list(network.config.classes)), ["uhkd", "classes"])
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def open_openvino(path: Path) -> Any:
    """Open an OpenVINO model on the CPU, computed in float32; by default some CPUs compute in bfloat16."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: torch.from_numpy(model(image.numpy())[0])
