"""What every form is made from: the network with its normalisation, and the program that torch follows through it."""

import json

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.features.introspection import first_tensor

_LARGEST_BATCH = 1024


class ExportModule(nn.Module):
    """Images in [0,1] of the network's own size -> logits, or the embedding of a network without a head: (B,3,H,W) -> (B,K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: FeatureExtractor) -> None:
        super().__init__()
        self.module = network.module
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Tensor:
        """Logits or embedding, (B, K)."""
        output = first_tensor(self.module((image - self.mean) / self.std))
        assert output is not None
        return output


def followed(module: nn.Module, size: tuple[int, int], name: str) -> torch.export.ExportedProgram:
    """The program of a module for images of `size`, any number of them up to 1,024.

    It says nothing of the machine that made it: torch notes the source files of each operation, and would write them down.

    Raises:
        UhkdError: a module that torch cannot follow; `name` is what it is called there.
    """
    # two images: a batch of one would be taken for a constant
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (image,), dynamic_shapes=({0: batch},))
    except Exception as error:  # a network of anyone's: whatever torch cannot follow
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UhkdError(
            f"torch cannot follow {name} with a batch of any size ({why}): export it as safetensors"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def program_of(network: FeatureExtractor) -> torch.export.ExportedProgram:
    """The program of a network with its normalisation.

    Raises:
        UhkdError: as `followed`.
    """
    return followed(ExportModule(network).eval(), network.input_size, type(network.module).__name__)


def output_name(network: FeatureExtractor) -> str:
    """What the network answers: logits or embedding."""
    return "embedding" if network.shapes.logits is None else "logits"


def card_json(network: FeatureExtractor) -> str:
    """The network's card as text: name, classes, size, normalisation."""
    return json.dumps(network.card.to_json(), ensure_ascii=False)
