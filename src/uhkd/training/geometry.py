"""Notes about the shape of images: what a centred crop discards, and shapes that differ between networks."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from uhkd.console import log_info
from uhkd.data import Augmentation, DataSplits, FileSource, ImageSource, Split
from uhkd.data.decode import header_size
from uhkd.features import FeatureExtractor
from uhkd.recipe import Resize
from uhkd.runs import RunFolder

_HEADERS = 64  # files whose size is read
_MOST_LOST = 1 / 3  # share of the area of an image
_SAME = 1.02  # ratio of two aspect ratios that differ only by rounding


def log_geometry(data: DataSplits, size: tuple[int, int], networks: Sequence[FeatureExtractor]) -> None:
    """Log if the crop to the shape of `size` (H, W) discards much of most images, or `networks` distort it."""
    if data.resize == "squash":
        return
    lost = [1 - 1 / _stretch(shape, size) for shape in image_shapes(data)] if data.resize == "crop" else []
    if lost and median(lost) > _MOST_LOST:
        log_info(
            f"  the centred crop to {size[0]}x{size[1]} discards {median(lost):.0%} of the area of a typical image: --resize "
            "squash or pad keeps all of it, and so does --image-size HEIGHT WIDTH in the shape of the images"
        )
    for network in networks:
        if _stretch(network.input_size, size) > _SAME:
            height, width = network.input_size
            log_info(
                f"  the images of {size[0]}x{size[1]} have another shape than the input of {network.config.name}, "
                f"{height}x{width}, which stretches them"
            )


def note_other_resize(name: str, network: FeatureExtractor, resize: Resize) -> None:
    """Log if the network of a run folder was trained on images that got their shape in another way."""
    if RunFolder(name).has_model() and network.config.resize != resize:
        log_info(f"  {name} was trained with resize {network.config.resize}, this run uses {resize} (--resize)")


def same_shape(live: Augmentation, stored: Augmentation) -> bool:
    """Return whether views of two sizes show the same part of an image."""
    return live.resize == "squash" or _stretch(live.size, stored.size) <= _SAME


def _stretch(shape: tuple[int, int], other: tuple[int, int]) -> float:
    """Return the ratio of two aspect ratios, at least 1."""
    ratio = shape[0] * other[1] / (shape[1] * other[0])
    return max(ratio, 1 / ratio)


def image_shapes(data: DataSplits) -> list[tuple[int, int]]:
    """Return the (height, width) of some training images; none where only decoding them would tell."""
    if data.native_size is not None:
        return [data.native_size]
    source: ImageSource = data.train
    indices = np.unique(np.linspace(0, len(source) - 1, _HEADERS).astype(int))
    while isinstance(source, Split):
        source, indices = source.source, source.indices[indices]
    if not isinstance(source, FileSource):
        return []
    sizes = (header_size(source.path(int(index))) for index in indices)
    return [size for size in sizes if size is not None]
