"""The configuration of a model, stored as card.json: what is needed to build the same architecture again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from uhkd.errors import UhkdError
from uhkd.features import IMAGENET_MEAN, IMAGENET_STD
from uhkd.recipe import Resize

LARGEST_SIDE = 16384  # px: a downloaded file must not be able to use up all memory


@dataclass(frozen=True)
class ModelConfig:
    """Name, options, input and feature layers of a model.

    `num_classes` is 0 for a model without a head. `image_size` is (height, width). `classes` are the class names in the order
    of the outputs, empty if unknown. `resize`: how images got the shape of `image_size` in training; see
    `uhkd.data.resize.fit_image`. `temperature`: the logits divided by it give calibrated probabilities.
    """

    name: str
    num_classes: int
    image_size: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    levels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    resize: Resize = "crop"

    def differing_class(self, classes: Sequence[str]) -> str:
        """Return a phrase on the first class whose name is not that of `classes` at its place; empty if there is none."""
        for name, other in zip(self.classes, classes, strict=False):
            if name != other:
                return f"its classes have other names or another order ({name!r} where the data has {other!r})"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return strings, numbers, lists and dictionaries only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_json` wrote; unknown entries are ignored.

        Raises:
            UhkdError: name, number of classes or image size are missing, or a value has a wrong type or range.
        """
        missing = [key for key in ("name", "num_classes", "image_size") if data.get(key) is None]
        if missing:
            raise UhkdError(f"card.json needs {', '.join(missing)}; found {', '.join(map(str, data)) or 'nothing'}")
        try:
            config = TypeAdapter(cls).validate_python({f.name: data[f.name] for f in fields(cls) if f.name in data})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UhkdError(f"{key} in card.json is invalid: {first['msg']}, found {first['input']!r}") from None
        if config.num_classes < 0 or min(config.image_size) < 1 or max(config.image_size) > LARGEST_SIDE:
            raise UhkdError(
                f"card.json has {config.num_classes} classes and images of {config.image_size}; expected 0 or more, and "
                f"sides of 1 to {LARGEST_SIDE} px"
            )
        norms_valid = all(len(norm) in (1, 3) and all(map(math.isfinite, norm)) for norm in (config.mean, config.std))
        if not norms_valid or min(config.std) <= 0:
            raise UhkdError(
                f"card.json has mean {config.mean} and std {config.std}; expected one number or three each, std above 0"
            )
        if not 0 < config.temperature < math.inf:
            raise UhkdError(f"card.json has temperature {config.temperature}; expected a finite number above 0")
        return config
