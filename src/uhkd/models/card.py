"""The card of a model: the few facts from which the same architecture is built again."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from uhkd.errors import UhkdError
from uhkd.features import IMAGENET_MEAN, IMAGENET_STD

LARGEST_SIDE = 16384  # px: a card from elsewhere must not ask for all memory


@dataclass(frozen=True)
class ModelCard:
    """Name, head, input and taps of a model; `classes` are the names of its outputs, empty if unknown.

    `num_classes` is 0 for a model without a head. `image_size` is (height, width).
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

    def to_json(self) -> dict[str, Any]:
        """The card as plain data: strings, numbers, lists and dictionaries only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelCard":
        """The card written by `to_json`; entries it does not know are left aside.

        Raises:
            UhkdError: name, number of classes or image size are missing, or something is of another type.
        """
        missing = [key for key in ("name", "num_classes", "image_size") if data.get(key) is None]
        if missing:
            raise UhkdError(f"a model card needs {', '.join(missing)}; found {', '.join(map(str, data)) or 'nothing'}")
        known = {item.name for item in fields(cls)}
        try:
            card = TypeAdapter(cls).validate_python({key: value for key, value in data.items() if key in known})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UhkdError(
                f"the model card's {where} cannot be used: {first['msg']}, found {first['input']!r}"
            ) from None
        if card.num_classes < 0 or min(card.image_size) < 1 or max(card.image_size) > LARGEST_SIDE:
            raise UhkdError(
                f"the model card has {card.num_classes} classes and images of {card.image_size}; expected 0 or more, and "
                f"sides of 1 to {LARGEST_SIDE} px"
            )
        if (
            not all(len(norm) in (1, 3) and all(map(math.isfinite, norm)) for norm in (card.mean, card.std))
            or min(card.std) <= 0
        ):
            raise UhkdError(
                f"the model card has mean {card.mean} and std {card.std}; expected one number or three each, std above 0"
            )
        return card
