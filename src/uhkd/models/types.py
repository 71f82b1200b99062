"""What the builders of all libraries share: preprocessing, a built module, and the errors of constructors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import nn

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features import IMAGENET_MEAN, IMAGENET_STD
from uhkd.recipe.errors import did_you_mean

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """The images that a network expects; mean and std are of images in [0,1]."""

    size: Size
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class BuiltModel:
    """A module with its input, notes for the user, and the size that its architecture was made for."""

    module: nn.Module
    input: Preprocessing
    notes: tuple[str, ...] = ()
    made_for: Size = (224, 224)


def as_size(value: Any, name: str = "image_size") -> Size:
    """Return one side, or two, as (height, width).

    Raises:
        UhkdError: not one or two positive numbers; `name` is the option that has the value.
    """
    sides = value if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int | float) and 1 <= side < inf for side in sides):
        raise UhkdError(f"{name} must be one or two positive numbers of pixels, found {value}")
    return (int(sides[0]), int(sides[1]))


def construct(name: str, size: Size, make: Callable[[], Any]) -> Any:
    """Return `make()`, the call of another library's constructor.

    Raises:
        UhkdError: the constructor rejects its arguments; one line.
    """
    try:
        return make()
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise construction_error(name, size, error) from error


def construction_error(name: str, size: Size, error: BaseException) -> UhkdError:
    """Return the error for arguments that a library's constructor rejects with `error`."""
    text = first_line(error)
    if "unexpected keyword argument" in text:
        return unknown_option(name, text.rsplit("argument", 1)[1].strip(" '\""), _COMMON_OPTIONS)
    if "multiple values" in text:
        return UhkdError(f"{name} sets this option itself: {text}")
    return UhkdError(f"{name} cannot be built for images of {size[0]}x{size[1]} px: {text}")


# timm's names of the arguments that are changed most, for "did you mean"
_COMMON_OPTIONS = (
    *("depth", "depths", "drop_path_rate", "drop_rate", "embed_dim", "global_pool", "img_size", "layers", "mlp_ratio"),
    *("num_blocks", "num_heads", "patch_size", "qkv_bias", "reg_tokens", "window_size", "channels", "image_size"),
)


def unknown_option(name: str, option: str, options: Iterable[str]) -> UhkdError:
    """Return the error for an option that a model does not have, with the nearest of `options`."""
    return UhkdError(f"{name} takes no option '{option}'{did_you_mean(option, options)}")
