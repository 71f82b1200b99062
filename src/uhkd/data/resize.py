"""Bring an image to the size of a network's input: by a centred crop, by stretching, or with borders."""

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from uhkd.recipe import Resize

BORDER = (124, 116, 104)
"""Colour of the borders of resize "pad": the mean of ImageNet, near 0 after a usual normalisation."""
_Box = tuple[int, int, int, int]


def fit_image(image: UInt8[Tensor, "3 h w"], size: tuple[int, int], resize: Resize) -> UInt8[Tensor, "3 H W"]:
    """Return an image at `size` (H, W), antialiased.

    resize: "crop" takes the largest centred box of the shape of `size`, "squash" stretches the whole image, "pad" keeps its shape
    and adds borders.
    """
    if resize == "crop":
        return center_crop_resize(image, size)
    return cut_box(image, canvas(image, size, resize), size)


def center_crop_resize(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Cut the largest centred box of the aspect ratio of `size` (H, W) and resize it, antialiased."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    scale = min(height / size[0], width / size[1])
    cut = min(height, max(1, round(scale * size[0]))), min(width, max(1, round(scale * size[1])))
    return cut_box(image, ((height - cut[0]) // 2, (width - cut[1]) // 2, *cut), size)


def canvas(image: Tensor, size: tuple[int, int], resize: Resize) -> _Box:
    """Return the box (top, left, height, width) of all that a view may contain: the image, for "pad" with its borders."""
    height, width = image.shape[-2:]
    if resize != "pad":
        return 0, 0, height, width
    scale = max(height / size[0], width / size[1])
    rows, columns = max(height, round(scale * size[0])), max(width, round(scale * size[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def cut_box(image: Tensor, box: _Box, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Return the part of an image in a box (top, left, height, width), resized to `size`; what is outside the image is border."""
    top, left, height, width = box
    rows, y, above = _overlap(top, height, image.shape[-2], size[0])
    columns, x, before = _overlap(left, width, image.shape[-1], size[1])
    part = image[:, rows, columns]
    if (y, x) == tuple(size) and part.numel():
        return _resize(part, size)
    result = torch.tensor(BORDER, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
    if part.numel():
        result[:, above : above + y, before : before + x] = _resize(part, (y, x))
    return result


def _overlap(start: int, length: int, side: int, target: int) -> tuple[slice, int, int]:
    """Return the pixels of a side that a range covers, and how many of the `target` pixels they fill, from which on."""
    first = max(start, 0)
    last = max(first, min(start + length, side))
    filled = min(target, max(1, round((last - first) * target / length)))
    return slice(first, last), filled, min(target - filled, round((first - start) * target / length))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
