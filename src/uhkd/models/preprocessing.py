"""The preprocessing that a network built by timm or transformers specifies in its own configuration."""

from collections.abc import Mapping

from torch import nn

from uhkd.models.factories import input_of
from uhkd.models.transformers import preprocessing_of_module
from uhkd.models.types import Preprocessing, Size


def native_size_of(module: nn.Module) -> Size | None:
    """Return the (height, width) that a network of timm or transformers was built for; None: unspecified, or any size."""
    if (own := preprocessing_of_module(module)) is not None:
        return own.size
    if isinstance(getattr(module, "pretrained_cfg", None), Mapping):
        sizes = (getattr(part, "img_size", None) for part in module.modules())
        size = next((size for size in sizes if isinstance(size, tuple) and len(size) == 2), None)
        return size and (int(size[0]), int(size[1]))
    return None


def native_preprocessing(module: nn.Module, size: Size = (224, 224)) -> Preprocessing | None:
    """Return the preprocessing that a network of timm, transformers or with `Normalize` needs for images of `size`, or None."""
    if (own := preprocessing_of_module(module)) is not None:
        return Preprocessing(size, own.mean, own.std, own.interpolation)
    cfg = getattr(module, "pretrained_cfg", None)
    if isinstance(cfg, Mapping):
        return input_of(cfg, size)
    if any(type(part).__name__ == "Normalize" and hasattr(part, "std") for part in module.modules()):
        return Preprocessing(size, (0.0,) * 3, (1.0,) * 3)  # normalises images itself
    return None
