"""The module that is exported (a network with its normalisation), and its program of torch.export."""

import json

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.features.introspection import first_tensor, luminance

_LARGEST_BATCH = 1024


class ExportModule(nn.Module):
    """Images (B, 3, H, W) in [0,1] of the network's input size -> logits, or the embedding without a head, (B, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: FeatureExtractor) -> None:
        super().__init__()
        self.module, self.grey = network.module, network.grey
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Tensor:
        """Return logits or embedding, (B, K)."""
        image = (image - self.mean) / self.std
        output = first_tensor(self.module(luminance(image) if self.grey else image))
        assert output is not None
        return output


def export_program(module: nn.Module, size: tuple[int, int], name: str) -> torch.export.ExportedProgram:
    """Export a module for batches of 1 to 1,024 images of `size` (height, width).

    The names of source files on this machine, which torch records for each operation, are removed.

    Raises:
        UhkdError: torch cannot export the module; `name` is its name in the message.
    """
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))  # torch takes a batch of 1 as constant
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (image,), dynamic_shapes=({0: batch},))
    except Exception as error:  # a custom network can fail in any way
        raise UhkdError(
            f"torch cannot export {name} with a variable batch size ({first_line(error)[:200]}): export it as safetensors"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def program_of(network: FeatureExtractor) -> torch.export.ExportedProgram:
    """Export a network with its normalisation.

    Raises:
        UhkdError: as `export_program`.
    """
    return export_program(ExportModule(network).eval(), network.input_size, type(network.module).__name__)


def output_name(network: FeatureExtractor) -> str:
    """Return the name of the output: logits or embedding."""
    return "embedding" if network.shapes.logits is None else "logits"


def config_json(network: FeatureExtractor) -> str:
    """Return the network's configuration (name, classes, size, normalisation) as JSON."""
    return json.dumps(network.config.to_json(), ensure_ascii=False)
