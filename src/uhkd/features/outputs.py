"""Outputs of one network for one batch, and their shapes."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

FIELDS = ("logits", "maps", "spectra", "embedding")
"""Names of the fields of `NetworkOutput` that can be requested."""


class NetworkOutput(NamedTuple):
    """Outputs of one network for one batch; a field that was not requested is None.

    It is a named tuple because Fabric and DDP process the tensors inside those.

    logits: (B,K). maps: feature maps (B,C,H,W) without prefix tokens, shallow to deep. spectra: FTM outputs (B,C,K).
    embedding: (B,D), the pooled vector before the classifier. extra_teachers: outputs of further teachers.
    """

    logits: Tensor | None = None
    maps: tuple[Tensor, ...] | None = None
    spectra: tuple[Tensor, ...] | None = None
    embedding: Tensor | None = None
    extra_teachers: "tuple[NetworkOutput, ...]" = ()

    def tensors(self) -> list[Tensor]:
        """Return all tensors, of any shape, including those of `extra_teachers`."""
        tensors = (self.logits, *(self.maps or ()), *(self.spectra or ()), self.embedding)
        return [x for x in tensors if x is not None] + [x for other in self.extra_teachers for x in other.tensors()]

    def all_finite(self) -> Tensor | None:
        """Return whether all numbers are finite, as a boolean () tensor without waiting for the device; None without tensors."""
        tensors = [x.detach() for x in self.tensors()]
        # the largest number decides: a few kernels for all tensors, because the number of kernels determines the GPU's time
        return nn.utils.get_total_norm(tensors, float("inf")).isfinite() if tensors else None


@dataclass(frozen=True)
class OutputShapes:
    """Output shapes of one network for one image: (C,H,W) of each feature map, D, K; None for a missing output.

    tokens: whether the network computes on tokens or channels-last maps, as transformers and MLPs do.
    """

    maps: tuple[tuple[int, int, int], ...]
    embedding: int | None
    logits: int | None
    tokens: bool = False


@dataclass(frozen=True)
class PairShapes:
    """What the constructor of a method needs: output shapes of both networks, number of classes and of training images."""

    student: OutputShapes
    teacher: OutputShapes | None
    num_classes: int
    num_samples: int
