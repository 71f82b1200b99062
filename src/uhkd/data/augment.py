"""Crop, flip, mixup and cutmix of one image, drawn from (seed, view, index or sample key) alone."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from uhkd.data.color_transforms import check_randaugment
from uhkd.data.resize import canvas, cut_box, fit_image
from uhkd.data.rng import stream
from uhkd.errors import UhkdError
from uhkd.recipe import AugmentationOptions, Resize, build

_RATIO = (3 / 4, 4 / 3)  # width over height of a resized crop, relative to the target's
_TRIES = 6
_OTHERS = ("size", "crop", "resize")  # options that are not those of `AugmentationOptions`, or have fewer values
ONE = 1 << 16  # mixup weights are multiples of 1/65536: integer arithmetic is equal on every machine


@dataclass(frozen=True)
class Augmentation:
    """Options of a training view.

    A view is cropped, flipped, changed in colour and erased; then two such views are mixed. (timm's scripts erase after
    mixing where images are normalised on the device, before it elsewhere.)

    Attributes:
        size: (H, W) of every view.
        crop: "none"; "pad": shift by up to an eighth of the size, edges mirrored; "resized": random aspect ratio and area.
        flip: mirror views with probability 0.5.
        mixup, cutmix: Beta parameters, 0 = off; with both on, each view takes one of them with equal probability.
        crop_scale: smallest share of the area that crop "resized" takes.
        randaugment: timm's configuration string, such as rand-m9-mstd0.5-inc1.
        color_jitter: largest change of the factors of brightness, contrast and saturation; see `jitters`.
        erasing: probability that a box is replaced by noise.
        resize: how an image gets the shape of `size`; see `uhkd.data.resize.fit_image`.

    Raises:
        UhkdError: an empty size, an unknown crop, resize or randaugment, or a number out of its range.
    """

    size: tuple[int, int]
    crop: Literal["none", "pad", "resized"] = "none"
    flip: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_scale: float = 0.25
    randaugment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    resize: Resize = "crop"

    @property
    def jitters(self) -> bool:
        """Whether colours are jittered: as in timm, not together with RandAugment, except with its "3a" operations."""
        return self.color_jitter > 0 and (self.randaugment is None or "3a" in self.randaugment)

    @property
    def mixes(self) -> bool:
        """Whether views are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UhkdError(f"image size must be at least 1x1, found {self.size}")
        if self.crop not in ("none", "pad", "resized"):
            raise UhkdError(f"crop must be none, pad or resized, found {self.crop!r}")
        if self.resize not in get_args(Resize):
            raise UhkdError(f"resize must be crop, squash or pad, found {self.resize!r}")
        # the bounds are those of a recipe
        build(AugmentationOptions, {name: value for name, value in vars(self).items() if name not in _OTHERS})
        if self.randaugment is not None:
            check_randaugment(self.randaugment)


def geometry(image: Tensor, key: int, *, seed: int, view: int, augmentation: Augmentation) -> np.ndarray:
    """Return `image` (3,h,w) uint8 cropped, resized and flipped: (3,H,W) in new memory.

    key: the image's index or sample key; see `view_keys`.
    """
    height, width = augmentation.size
    if augmentation.crop == "none" and not augmentation.flip:
        return np.array(fit_image(image, augmentation.size, augmentation.resize).numpy(), order="C")
    draws = stream("geometry", seed, view, key).random(2 * _TRIES + 3).tolist()
    mirrored = augmentation.flip and draws[0] < 0.5
    top_draw, left_draw = draws[1:3]
    if augmentation.crop == "resized":
        image = _random_area(image, augmentation, draws[3:], top_draw, left_draw)
    image = fit_image(image, augmentation.size, augmentation.resize)
    if augmentation.crop != "pad":  # copying whole rows is faster than picking columns
        pixels = image.numpy()
        return np.array(pixels[:, :, ::-1] if mirrored else pixels, order="C")
    rows = mirror(np.arange(height) + _shift(height, top_draw), height)
    columns = mirror(np.arange(width) + _shift(width, left_draw), width)
    return image.numpy().take(rows, axis=1).take(columns[::-1] if mirrored else columns, axis=2)


def _random_area(image: Tensor, augmentation: Augmentation, draws: list[float], top: float, left: float) -> Tensor:
    size, min_share = augmentation.size, augmentation.crop_scale
    top_edge, left_edge, height, width = canvas(image, size, augmentation.resize)
    shape = (height, width) if augmentation.resize == "squash" else size
    low, high = np.log(_RATIO[0]), np.log(_RATIO[1])
    for area_draw, ratio_draw in zip(draws[::2], draws[1::2], strict=True):
        area = height * width * (min_share + area_draw * (1.0 - min_share))
        ratio = float(np.exp(low + ratio_draw * (high - low))) * shape[1] / shape[0]
        rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            y, x = int(top * (height - rows + 1)), int(left * (width - columns + 1))
            return cut_box(image, (top_edge + y, left_edge + x, rows, columns), size)
    return image  # no drawn box fits into a very long image: the caller takes the whole or its centre


def _shift(length: int, draw: float) -> int:
    pad = length // 8
    return int(draw * (2 * pad + 1)) - pad


def mirror(positions: np.ndarray, length: int) -> np.ndarray:
    """Reflect positions up to length - 1 beyond either edge into 0..length-1, as NumPy's padding "reflect"."""
    positions = np.abs(positions)
    return np.minimum(positions, 2 * (length - 1) - positions)


class MixParameters(NamedTuple):
    """Parameters of one mixed view: box (y0,y1,x0,x1) for cutmix, None for mixup.

    partner: index of the other image. weight: of the view, 0..ONE (mixup). share: of the view's class in the target.
    """

    partner: int
    weight: int
    box: tuple[int, int, int, int] | None
    share: float


def draw_mix(
    index: int, candidates: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator
) -> MixParameters:
    """Draw how view `index` is mixed, and with which of the images `candidates` (first, last + 1)."""
    first, count = candidates[0], candidates[1] - candidates[0]
    partner = index if count < 2 else first + (index - first + 1 + int(rng.random() * (count - 1))) % count
    if augmentation.cutmix and not (augmentation.mixup and rng.random() >= 0.5):
        box, share = _draw_box(augmentation.size, augmentation.cutmix, rng)
        return MixParameters(partner, ONE, box, share)
    weight = round(rng.beta(augmentation.mixup, augmentation.mixup) * ONE)
    return MixParameters(partner, weight, None, weight / ONE)


def mixup_pair(image: np.ndarray, other: np.ndarray, weight: int | np.ndarray) -> np.ndarray:
    """Return the rounded weighted mean of two uint8 arrays of equal shape; weight: 0..ONE, an array must be int32."""
    mixed = image.astype(np.int32) * weight + other.astype(np.int32) * (ONE - weight)
    return ((mixed + ONE // 2) >> 16).astype(np.uint8)


def cutmix_(image: np.ndarray, other: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Copy the box (y0,y1,x0,x1) of `other` into `image`, both (3,H,W)."""
    y0, y1, x0, x1 = box
    image[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]


def _draw_box(size: tuple[int, int], alpha: float, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], float]:
    """Return a box (y0,y1,x0,x1) and the share of pixels outside it."""
    height, width = size
    side = (1.0 - rng.beta(alpha, alpha)) ** 0.5
    rows, columns = round(height * side), round(width * side)
    top, left = int(rng.random() * height) - rows // 2, int(rng.random() * width) - columns // 2
    y0, y1 = max(top, 0), min(top + rows, height)
    x0, x1 = max(left, 0), min(left + columns, width)
    return (y0, y1, x0, x1), 1.0 - (y1 - y0) * (x1 - x0) / (height * width)
