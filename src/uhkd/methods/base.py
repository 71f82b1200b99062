"""The contract every distillation method obeys: what it needs of each side, and its raw, named loss terms."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.spectral import SpectralTarget
from uhkd.taps import Shapes, SideShapes, Signals

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Needs:
    """Fields of `Signals` a method reads on each side, and how the teacher's spectra are to be made if it reads them."""

    student: frozenset[str] = NOTHING
    teacher: frozenset[str] = NOTHING
    target: SpectralTarget | None = None


class Distiller(nn.Module, ABC):
    """A distillation method: its trainable parts and its loss terms, blind to models, data and training loop.

    Subclasses take the measured `Shapes`, `weights` by term name and their own keyword settings; they set `needs` and
    compute, in `forward`, one raw scalar per term whose weight is not 0. Weights are applied by the engine alone.
    """

    default_weights: ClassVar[Mapping[str, float]] = {}
    needs: Needs

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.weights = {**self.default_weights, **(weights or {})}
        self.needs = Needs()

    def wants(self, term: str) -> bool:
        """Whether a term counts; the work of a term of weight 0 is skipped."""
        return self.weights[term] != 0

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Raw scalar terms by name, in float32, finite for finite signals."""


def teacher_shapes(shapes: Shapes, method: str) -> SideShapes:
    """The teacher's measured shapes.

    Raises:
        ValueError: when there is no teacher.
    """
    if shapes.teacher is None:
        raise ValueError(f"method {method!r} needs a teacher; give one (--teacher) or choose method 'scratch'")
    return shapes.teacher
