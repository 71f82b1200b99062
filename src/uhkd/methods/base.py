"""What every distillation method implements: the outputs it needs, and its raw loss terms by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput, OutputShapes, PairShapes
from uhkd.spectral import SpectralTarget

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Requirements:
    """Inputs of a method.

    student, teacher: fields of `NetworkOutput` that it reads. target: how to compute the teacher's spectra, if it reads them.
    index: whether it reads `Batch.index`, the index of each image in the training data.
    """

    student: frozenset[str] = NOTHING
    teacher: frozenset[str] = NOTHING
    target: SpectralTarget | None = None
    index: bool = False


class DistillationLoss(nn.Module, ABC):
    """A distillation method: its trainable parts and its loss terms, independent of models, data and training loop.

    Subclasses take the measured `PairShapes`, `weights` by term name and keyword settings. They set `needs`, and `forward`
    returns one raw scalar for each term with a weight other than 0; only `weighted_sum` applies the weights.

    Class attributes:
        default_weights: weight of each term.
        main_term: the term whose weight is tuned.
        auxiliary_logit_terms: terms that compare logits in addition to the method's main terms. They get weight 0 next to a
            method with `is_logit_method`, as in "uhkd+dkd".
        is_logit_method: whether the method is made to compare logits.
        needs_labels: whether it reads the labelled class.
        tunable: the one setting that is tuned, with the values to try.
        balance: the default balance: how the weights of its terms change during training.

    Attributes:
        teacher_index: index of the teacher that the loss reads; among several teachers each has its own losses.
    """

    default_weights: ClassVar[Mapping[str, float]] = {}
    main_term: ClassVar[str | None] = None
    auxiliary_logit_terms: ClassVar[frozenset[str]] = NOTHING
    is_logit_method: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    tunable: ClassVar[tuple[str, tuple[Any, ...]] | None] = None
    balance: ClassVar[str] = "constant"
    needs: Requirements
    teacher_index: int = 0

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.weights = {**self.default_weights, **(weights or {})}
        self.needs = Requirements()

    def is_active(self, term: str) -> bool:
        """Return whether the weight of a term is not 0; other terms are not computed."""
        return self.weights[term] != 0

    @abstractmethod
    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the raw scalar terms by name, in at least float32, finite and >= 0 for finite inputs."""


def teacher_shapes(shapes: PairShapes, method: str) -> OutputShapes:
    """Return the teacher's measured shapes; raise `UhkdError` without a teacher."""
    if shapes.teacher is None:
        raise UhkdError(f"method {method!r} needs a teacher; give one (--teacher) or choose method 'scratch'")
    return shapes.teacher


def embedding_widths(shapes: PairShapes, method: str) -> tuple[int, int]:
    """Return the width of the student's and of the teacher's embedding.

    Raises:
        UhkdError: without a teacher, or for a network without embedding.
    """
    widths: list[int] = []
    for side, outputs in (("student", shapes.student), ("teacher", teacher_shapes(shapes, method))):
        if outputs.embedding is None:
            raise UhkdError(
                f"{method} needs {side} embedding, and the {side} has none: no vector before a linear classifier was found; "
                "choose a method that reads logits or feature maps"
            )
        widths.append(outputs.embedding)
    return widths[0], widths[1]


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, because losses are not computed in half precision; keep other types."""
    return x if x.dtype.itemsize >= 4 else x.float()


def z_scores(logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return (x - mean) / (1e-7 + std) over the classes of each image, in at least float32 (Sun et al. 2024, arXiv 2403.01427).

    The variance divides by K - 1. Apart from the 1e-7, a shift or a positive factor of an image's logits changes nothing.
    Equal logits become zeros. The gradient is finite there, but up to 1e7 times as large, because the divisor is 1e-7.
    """
    x = at_least_float32(logits)
    x = x - x.mean(1, keepdim=True)
    # not std(): it is NaN for a single class; the gradient of the norm is 0 where all logits are equal
    std = x.norm(dim=1, keepdim=True) / max(x.shape[1] - 1, 1) ** 0.5
    return x / (1e-7 + std)


def hard_labels(batch: Batch, method: str) -> Int[Tensor, " b"]:
    """Return the class of each image; of a mixed image, the class with the largest share.

    Raises:
        UhkdError: for images without labels.
    """
    if batch.target is None:
        raise UhkdError(
            f"{method} needs the labelled class, and these images have no labels; choose another method, such as kd or uhkd"
        )
    return batch.target.argmax(1)


def require_batch(count: int, method: str, why: str) -> None:
    """Raise `UhkdError` for fewer than two images."""
    if count < 2:
        raise UhkdError(
            f"{method} {why} and needs at least 2 images a step, got {count}; use a larger batch (or fewer accumulation steps)"
        )


def check_positive(value: float, name: str) -> None:
    """Raise `UhkdError` for a setting that is not above 0."""
    if not value > 0:
        raise UhkdError(f"{name} must be above 0, got {value}")
