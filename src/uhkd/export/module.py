"""The module that is exported (a network with its normalisation), and its program of torch.export."""

import json
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.features.introspection import first_tensor, luminance

_LARGEST_BATCH = 1024


class ProgramOptions(NamedTuple):
    """Properties of an exported program: ONNX opset (None: torch's default), and whether height and width are variable."""

    opset: int | None = None
    dynamic_size: bool = False


class ExportModule(nn.Module):
    """Images (B, 3, H, W) in [0,1] of the network's input size -> logits, or the embedding without a head, (B, K).

    The logits are divided by the temperature in the network's config.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: FeatureExtractor) -> None:
        super().__init__()
        self.module, self.grey = network.module, network.grey
        self.temperature = 1.0 if network.config is None else network.config.temperature
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Tensor:
        """Return logits or embedding, (B, K)."""
        image = (image - self.mean) / self.std
        output = first_tensor(self.module(luminance(image) if self.grey else image))
        assert output is not None
        return output if self.temperature == 1 else output / self.temperature


def export_program(
    module: nn.Module, size: tuple[int, int], name: str, dynamic_size: bool = False
) -> torch.export.ExportedProgram:
    """Export a module for batches of 1 to 1,024 images of `size` (height, width), or of other sizes too if `dynamic_size`.

    The names of source files on this machine, which torch records for each operation, are removed.

    Raises:
        UhkdError: torch cannot export the module; `name` is its name in the message.
    """
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))  # torch takes a batch of 1 as constant
    variable: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)}
    if dynamic_size:
        variable |= dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (image,), dynamic_shapes=(variable,))
    except Exception as error:  # a custom network can fail in any way
        what, advice = ("batch size", "export it as safetensors")
        if dynamic_size:
            what, advice = ("image size", "its layers may need one size; leave out --dynamic-size")
        raise UhkdError(
            f"torch cannot export {name} with a variable {what} ({first_line(error)[:200]}): {advice}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def program_of(network: FeatureExtractor, dynamic_size: bool = False) -> torch.export.ExportedProgram:
    """Export a network with its normalisation.

    Raises:
        UhkdError: as `export_program`.
    """
    name = type(network.module).__name__
    return export_program(ExportModule(network).eval(), network.input_size, name, dynamic_size)


def output_name(network: FeatureExtractor) -> str:
    """Return the name of the output: logits or embedding."""
    return "embedding" if network.shapes.logits is None else "logits"


def config_json(network: FeatureExtractor) -> str:
    """Return the network's configuration (name, classes, size, normalisation) as JSON."""
    return json.dumps(network.config.to_json(), ensure_ascii=False)
