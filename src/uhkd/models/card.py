"""The card of a model: the few facts from which the same architecture is built again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from uhkd.taps import IMAGENET_MEAN, IMAGENET_STD


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
            ValueError: name, number of classes or image size are missing.
        """
        missing = [key for key in ("name", "num_classes", "image_size") if data.get(key) is None]
        if missing:
            raise ValueError(f"a model card needs {', '.join(missing)}; found {', '.join(map(str, data)) or 'nothing'}")
        known = {item.name for item in fields(cls)}
        listed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in known
        }
        return cls(**listed)
