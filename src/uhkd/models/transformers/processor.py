"""What an image processor of transformers does to images, in terms of images in [0,1]."""

from collections.abc import Mapping
from typing import Any

from uhkd.errors import UhkdError
from uhkd.models.card import LARGEST_SIDE
from uhkd.models.factories import Preprocessing, Size
from uhkd.models.transformers.configuration import pair, size_of_config

_PIXELS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers of its filters


def described_by(config: Any, processor: Mapping[str, Any] | None) -> Preprocessing:
    """Size, mean, std and filter; a processor's arithmetic on bytes is said in terms of images in [0,1].

    Raises:
        UhkdError: for a processor of other words, or impossible numbers.
    """
    own = size_of_config(config)
    if processor is None:
        return Preprocessing(own or (224, 224))
    try:
        found = _described(processor, own or (224, 224))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UhkdError(
            f"the image processor's configuration cannot be used: {type(error).__name__} {error}"
        ) from error
    if not (min(found.size) >= 1 and max(found.size) <= LARGEST_SIDE) or min(found.std) <= 0:
        raise UhkdError(
            f"the image processor has images of {found.size} and std {found.std}; expected sides of 1 to {LARGEST_SIDE} px, and "
            "std above 0"
        )
    return found


def _described(processor: Mapping[str, Any], own: Size) -> Preprocessing:
    scale = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True) or mean is None or std is None:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    given = processor.get("crop_size") if processor.get("do_center_crop") else None
    given = given or processor.get("size") or own
    if isinstance(given, Mapping):
        given = given["shortest_edge"] if "shortest_edge" in given else (given["height"], given["width"])
    return Preprocessing(
        pair(given),
        tuple((float(m) + offset) / scale for m in mean),
        tuple(float(s) / scale for s in std),
        _PIXELS.get(processor.get("resample", 2), "bicubic"),
    )
