"""Options for one's own data: unequal classes, frozen layers, the epoch that is kept, and early stopping."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from uhkd.errors import UhkdError
from uhkd.recipe.base import StrictModel
from uhkd.recipe.errors import format_value


def _class_weights(value: Any) -> Any:
    """Return None, "balanced" or {class: weight}, from these or from the texts of a command line."""
    if isinstance(value, list | tuple):
        texts = [str(item) for item in value]
        pairs = [text.rpartition("=") for text in texts]
        with contextlib.suppress(ValueError):
            value = {key: float(x) for key, _, x in pairs} if all(key for key, *_ in pairs) else " ".join(texts)
    if value == "balanced" or str(value).lower() in ("none", "null"):
        return value if value == "balanced" else None
    weights = dict(value) if isinstance(value, Mapping) else {}
    numbers = [
        x for x in weights.values() if isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf
    ]
    if not 0 < len(weights) == len(numbers):
        raise UhkdError(f"expected none, balanced or CLASS=WEIGHT pairs with weights > 0, found {format_value(value)}")
    return {str(name): float(weight) for name, weight in weights.items()}


class OwnDataOptions(StrictModel):
    """Class weights, sampling, frozen layers, the epoch to keep, and early stopping."""

    class_weights: Annotated[str | dict[str, float] | None, BeforeValidator(_class_weights)] = Field(
        default=None,
        description="weights of the classes in the cross-entropy: balanced (inverse to their number of images) or CLASS=WEIGHT "
        "pairs (others 1), scaled to a mean of 1 over the training images; none: equal",
    )
    sampling: Literal["uniform", "balanced"] = Field(
        default="uniform",
        description="images of an epoch: each once (uniform), or as many with every class equally often (balanced: images of "
        "small classes are repeated, each time in another view)",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="parts of the trained network that do not learn, batch norm statistics included: names of modules with all "
        "below them, such as layer1 or 'blocks.[0-5]', or layers as printed by uhkd inspect",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="weights to use: of the last epoch, or of the best one by the held-out part (that number is then "
        "optimistic; those of the last epoch are stored too)",
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many validations without improvement; none: never"
    )

    def _own_data_conflicts(self) -> Iterator[str]:
        if self.class_weights == "balanced" and self.sampling == "balanced":
            yield "class_weights: sampling balanced balances the classes already; choose one of the two"
