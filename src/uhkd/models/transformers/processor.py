"""Image processors of transformers, converted to preprocessing of images in [0,1]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from uhkd.errors import UhkdError
from uhkd.models.config import LARGEST_SIDE
from uhkd.models.families import is_hub_name
from uhkd.models.transformers.configuration import is_pretrained_model, size_of_config
from uhkd.models.types import Preprocessing, Size, as_size
from uhkd.runs import read_mapping

PROCESSOR = "preprocessor_config.json"
_FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def preprocessing_of_module(module: nn.Module) -> Preprocessing | None:
    """Return the preprocessing of an object of transformers, read from its folder or the hub cache; None for other modules."""
    if not is_pretrained_model(module):
        return None
    origin = str(getattr(module, "name_or_path", "") or "")
    file: Any = str(Path(origin, PROCESSOR)) if origin else None
    if file and not Path(file).is_file():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(origin, PROCESSOR) if is_hub_name(origin) else None
    # the cache returns a marker object for a file that the hub is known not to have
    is_file = isinstance(file, str) and Path(file).is_file()
    return preprocessing_of_processor(module.config, read_mapping(Path(file)) if is_file else None)


def preprocessing_of_processor(config: Any, processor: Mapping[str, Any] | None) -> Preprocessing:
    """Convert a processor's configuration; its scaling and normalisation of bytes become mean and std for images in [0,1].

    Raises:
        UhkdError: a configuration with missing fields or impossible numbers.
    """
    size = size_of_config(config) or (224, 224)
    if processor is None:
        return Preprocessing(size)
    try:
        preprocessing = _convert(processor, size)
    except UhkdError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UhkdError(
            f"the image processor's configuration cannot be used: {type(error).__name__} {error}"
        ) from error
    sides = preprocessing.size
    if max(sides) > LARGEST_SIDE or min(preprocessing.std) <= 0:
        raise UhkdError(
            f"the image processor has images of {sides} and std {preprocessing.std}; expected sides of 1 to {LARGEST_SIDE} px, "
            "and std above 0"
        )
    return preprocessing


def _convert(processor: Mapping[str, Any], default_size: Size) -> Preprocessing:
    scale = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True) or mean is None or std is None:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = crop or processor.get("size") or default_size
    if isinstance(size, Mapping):
        size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    return Preprocessing(
        as_size(size, "size of the image processor"),
        tuple((float(m) + offset) / scale for m in mean),
        tuple(float(s) / scale for s in std),
        _FILTERS.get(processor.get("resample", 2), "bicubic"),
    )
