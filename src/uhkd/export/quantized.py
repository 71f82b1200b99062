"""Forms with 8-bit integers: of torch by torchao, and of ONNX by onnxruntime.

Static quantisation: weights by output channel, activations by tensor, with ranges measured on calibration images.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uhkd.export.module import ProgramOptions, export_program, program_of
from uhkd.export.onnx_pt2 import save_onnx, save_program, write_onnx
from uhkd.features import FeatureExtractor
from uhkd.models.families import quiet_torchao


def write_int8(network: FeatureExtractor, folder: Path, options: ProgramOptions, calibration: Iterable[Tensor]) -> Path:
    """Write model.int8.pt2 with torchao's PT2E: convolutions and linear layers in int8, biases and the rest in float32.

    calibration: batches of images (B, 3, H, W) in [0,1] of the network's input size.

    Raises:
        UhkdError: as `export_program`.
    """
    with quiet_torchao():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    config = x86.get_default_x86_inductor_quantization_config()
    prepared = prepare_pt2e(program_of(network).module(), x86.X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        for images in calibration:
            prepared(images)
        converted = convert_pt2e(prepared)
    _drop_unused(converted)
    program = export_program(converted, network.input_size, type(network.module).__name__)
    return save_program(program, network, folder / "model.int8.pt2")


def open_int8(path: Path) -> Any:
    """Open a program of torch.export after torchao has registered its operators."""
    with quiet_torchao():
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401
    return torch.export.load(path).module()


def write_onnx_int8(
    network: FeatureExtractor, folder: Path, options: ProgramOptions, calibration: Iterable[Tensor]
) -> Path:
    """Write model.int8.onnx with onnxruntime's static quantisation: convolutions and matrix products in int8.

    Activations are unsigned, which onnxruntime multiplies fastest on x86. calibration: as `write_int8`.

    Raises:
        UhkdError: as `export_program`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        batches = iter(calibration)

        def get_next(self) -> Any:
            images = next(self.batches, None)
            return None if images is None else {"image": images.numpy()}

    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        prepared, quantized = Path(temporary, "prepared.onnx"), Path(temporary, "int8.onnx")
        quant_pre_process(str(write_onnx(network, Path(temporary), options)), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantized),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
        return save_onnx(onnx.load(quantized), network, folder / "model.int8.onnx")


def _drop_unused(module: nn.Module) -> None:
    """Delete the float weights that the graph no longer uses; torch would save them with the integers."""
    graph: Any = module.graph
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [name for tensors in (module.named_parameters(), module.named_buffers()) for name, _ in tensors]:
        if name not in used:
            parent, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(parent), leaf)
