"""The contract every distillation method obeys: what it needs of each side, and its raw, named loss terms."""

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
    """Fields of `NetworkOutput` a method reads on each side, and how the teacher's spectra are to be made if it reads them.

    index: whether it reads `Batch.index`, which image is which.
    """

    student: frozenset[str] = NOTHING
    teacher: frozenset[str] = NOTHING
    target: SpectralTarget | None = None
    index: bool = False


class DistillationLoss(nn.Module, ABC):
    """A distillation method: its trainable parts and its loss terms, blind to models, data and training loop.

    Subclasses take the measured `PairShapes`, `weights` by term name and their own keyword settings; they set `needs` and
    compute, in `forward`, one raw scalar per term whose weight is not 0. Weights are applied by `weighted_sum` alone.

    default_weights: weight of each term. main_term: the term whose weight is tuned. companions: terms that stand in for a
    logits method and give way (weight 0) to one named in the same list, as in "uhkd+dkd". imitates_logits: whether this is
    such a logits method. needs_labels: whether it treats the labelled class apart. knob: the one setting that is tuned, with
    the values tried. balance: how much its terms count over a training where none is asked for.

    Of several teachers each has losses of its own: `teacher_index` is the index of the teacher that a loss reads.
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
        """Whether a term counts; the work of a term of weight 0 is skipped."""
        return self.weights[term] != 0

    @abstractmethod
    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Raw scalar terms by name, in float32, finite for finite signals."""


def teacher_shapes(shapes: PairShapes, method: str) -> OutputShapes:
    """The teacher's measured shapes.

    Raises:
        UhkdError: when there is no teacher.
    """
    if shapes.teacher is None:
        raise UhkdError(f"method {method!r} needs a teacher; give one (--teacher) or choose method 'scratch'")
    return shapes.teacher


def embedding_widths(shapes: PairShapes, method: str) -> tuple[int, int]:
    """Width of the student's and the teacher's embedding.

    Raises:
        UhkdError: when there is no teacher, or a side has no embedding.
    """
    sides = {"student": shapes.student.embedding, "teacher": teacher_shapes(shapes, method).embedding}
    for side, width in sides.items():
        if width is None:
            raise UhkdError(
                f"{method} needs {side} embedding, and the {side} has none: no vector before a linear classifier was found; "
                "choose a method that reads logits or maps"
            )
    student, teacher = sides.values()
    assert student is not None and teacher is not None
    return student, teacher


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in at least float32: losses are not computed in half precision."""
    return x if x.dtype.itemsize >= 4 else x.float()


def z_scores(logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """(x - mean) / (1e-7 + std) over the classes of each image (Sun et al. 2024, arXiv 2403.01427), in at least float32.

    The variance divides by K - 1. A shift or a positive factor of an image's logits changes nothing (but for the 1e-7). Equal
    logits become zeros; the gradient there is finite, but up to 1e7 times as large, as the divisor is 1e-7.
    """
    x = at_least_float32(logits)
    x = x - x.mean(1, keepdim=True)
    # not std(): of a single class it is NaN; the gradient of the norm is 0 where all are equal
    std = x.norm(dim=1, keepdim=True) / max(x.shape[1] - 1, 1) ** 0.5
    return x / (1e-7 + std)


def hard_labels(batch: Batch, method: str) -> Int[Tensor, " b"]:
    """The class each image counts as: that of the largest share where images are mixed.

    Raises:
        UhkdError: for images without labels.
    """
    if batch.target is None:
        raise UhkdError(
            f"{method} treats the labelled class apart and needs labels; without them choose kd, rsd or uhkd"
        )
    return batch.target.argmax(1)


def require_batch(count: int, method: str, why: str) -> None:
    """Refuse a batch of one image.

    Raises:
        UhkdError: for fewer than two images.
    """
    if count < 2:
        raise UhkdError(
            f"{method} {why} and needs at least 2 images a step, got {count}; use a larger batch (or fewer accumulation steps)"
        )


def check_positive(value: float, name: str) -> None:
    """Refuse a setting that is not above 0.

    Raises:
        UhkdError: naming the setting and the value.
    """
    if not value > 0:
        raise UhkdError(f"{name} must be above 0, got {value}")
