"""What one network says about one batch, and the measured shapes of that."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

FIELDS = ("logits", "maps", "spectra", "embedding")
"""What `NetworkOutput` can hold, by name."""


class NetworkOutput(NamedTuple):
    """What one network says about one batch; a field is None unless it was asked for.

    A named tuple, because Fabric and DDP look inside those.

    logits: (B,K). maps: shallow to deep, each (B,C,H,W) without prefix tokens. spectra: FTM outputs, each (B,C,K).
    embedding: (B,D), the pooled vector before the classifier. others: what further networks say, where several are asked.
    """

    logits: Tensor | None = None
    maps: tuple[Tensor, ...] | None = None
    spectra: tuple[Tensor, ...] | None = None
    embedding: Tensor | None = None
    others: "tuple[NetworkOutput, ...]" = ()

    def tensors(self) -> list[Tensor]:
        """All that is said, by the others too, tensors of any shape."""
        own = (self.logits, *(self.maps or ()), *(self.spectra or ()), self.embedding)
        return [x for x in own if x is not None] + [x for other in self.others for x in other.tensors()]

    def finite(self) -> Tensor | None:
        """Whether all its numbers are finite, a () boolean on their device, which is not waited for; None without any."""
        tensors = [x.detach() for x in self.tensors()]
        # by their largest: a few kernels for all of them, where a GPU's time goes into starting many
        return nn.utils.get_total_norm(tensors, float("inf")).isfinite() if tensors else None


@dataclass(frozen=True)
class OutputShapes:
    """Shapes of one network's signals for one image: (C,H,W) of each level, D, K; None for a signal it lacks.

    tokens: whether the network itself holds its maps as tokens (or channels last), as transformers and MLPs do.
    """

    maps: tuple[tuple[int, int, int], ...]
    embedding: int | None
    logits: int | None
    tokens: bool = False


@dataclass(frozen=True)
class PairShapes:
    """Everything a method needs to know before it is built: both sides' shapes, classes and training images."""

    student: OutputShapes
    teacher: OutputShapes | None
    num_classes: int
    num_samples: int
