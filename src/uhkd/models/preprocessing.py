"""What a network that was built elsewhere says of the images it wants."""

from collections.abc import Mapping

from torch import nn

from uhkd.models.factories import Preprocessing, Size, input_of
from uhkd.models.transformers import described as described_by_transformers


def native_size_of(module: nn.Module) -> Size | None:
    """(height, width) that a network of timm or transformers was built for; None: it does not say, or takes any."""
    if (described := described_by_transformers(module)) is not None:
        return described.size
    if isinstance(getattr(module, "pretrained_cfg", None), Mapping):
        sizes = (getattr(part, "img_size", None) for part in module.modules())
        found = next((size for size in sizes if isinstance(size, tuple) and len(size) == 2), None)
        return found and (int(found[0]), int(found[1]))
    return None


def native_preprocessing(module: nn.Module, size: Size = (224, 224)) -> Preprocessing | None:
    """Images of a size as a network of timm or transformers wants them, by its own configuration; None: it does not say."""
    if (described := described_by_transformers(module)) is not None:
        return Preprocessing(size, described.mean, described.std, described.interpolation)
    cfg = getattr(module, "pretrained_cfg", None)
    return input_of(cfg, size) if isinstance(cfg, Mapping) else None
