"""Views of images: crop, flip, colours, mixup and cutmix as pure functions of (seed, view, index or sample key)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from uhkd.data.color_transforms import check_randaugment, erase_, jitter, rand_augment
from uhkd.data.rng import stream
from uhkd.data.sampler import mix_candidates
from uhkd.data.sources import ImageSource, view_keys
from uhkd.errors import UhkdError

_RATIO = (3 / 4, 4 / 3)  # its width over height, relative to the target's
_TRIES = 6
ONE = 1 << 16  # mixup weights are multiples of 1/65536: integer arithmetic, equal on every machine


@dataclass(frozen=True)
class Augmentation:
    """How a training view is made.

    size: (H,W) of every view. crop: "none"; "pad" = shift by up to an eighth of the size, edges mirrored; "resized" =
    random area, of which at least the share crop_scale, and aspect ratio. flip: mirror every other view. mixup, cutmix:
    Beta parameters, 0 = off; with both on, each view takes one of them with equal chance. randaugment: timm's
    configuration, as in rand-m9-mstd0.5-inc1. color_jitter: largest change of the factors of brightness, contrast and
    saturation, see `jitters`. erasing: chance that a box becomes noise.

    Crop, flip, colours and erasing make one image's view, and two such views are mixed. (timm's scripts erase after mixing
    where images are normalised on the device, before it elsewhere.)

    Raises:
        UhkdError: an empty size, an unknown crop or randaugment, or a number out of its range.
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

    @property
    def jitters(self) -> bool:
        """Whether colours are jittered: as in timm, not beside RandAugment, unless that draws from its "3a" operations."""
        return self.color_jitter > 0 and (self.randaugment is None or "3a" in self.randaugment)

    @property
    def mixes(self) -> bool:
        """Whether views are mixed with others'."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UhkdError(f"image size must be at least 1x1, found {self.size}")
        if self.crop not in ("none", "pad", "resized"):
            raise UhkdError(f"crop must be none, pad or resized, found {self.crop!r}")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < float("inf"):
                raise UhkdError(f"{name} must be 0 (off) or a positive Beta parameter, found {alpha}")
        if not 0 < self.crop_scale <= 1:
            raise UhkdError(f"crop_scale must be a share of the area above 0 and up to 1, found {self.crop_scale}")
        for name, value in (("color_jitter", self.color_jitter), ("erasing", self.erasing)):
            if not 0 <= value <= 1:
                raise UhkdError(f"{name} must be from 0 (off) to 1, found {value}")
        if self.randaugment is not None:
            check_randaugment(self.randaugment)


def view(
    source: ImageSource, index: int, *, seed: int, view: int, augmentation: Augmentation, num_classes: int
) -> tuple[UInt8[Tensor, "3 h w"], Float[Tensor, " k"] | None]:
    """Return view number `view` of image `index`, the same wherever and whenever it is asked for.

    The target is one-hot, or the mixture of two classes by their share of the pixels; None for a source without labels.
    A mixed view's partner is the un-mixed view of another image under the same (seed, view); see `mix_candidates`.
    """
    image = plain_view(source, index, seed=seed, view=view, augmentation=augmentation)
    mix = MixParameters(index, ONE, None, 1.0)
    if augmentation.mixes:
        address = int(view_keys(source, np.array([index]))[0])
        mix = draw_mix(index, mix_candidates(source, index), augmentation, stream("mix", seed, view, address))
        other = plain_view(source, mix.partner, seed=seed, view=view, augmentation=augmentation)
        if mix.box is None:
            image = mixup_pair(image, other, mix.weight)
        else:
            cutmix_(image, other, mix.box)
    if source.labels is None:
        return torch.from_numpy(image), None
    target = np.zeros(num_classes, dtype=np.float32)
    target[source.labels[index]] += np.float32(mix.share)
    target[source.labels[mix.partner]] += np.float32(1.0 - mix.share)
    return torch.from_numpy(image), torch.from_numpy(target)


def plain_view(source: ImageSource, index: int, *, seed: int, view: int, augmentation: Augmentation) -> np.ndarray:
    """Return the view before any mixing: (3,H,W) uint8, freshly allocated."""
    address = int(view_keys(source, np.array([index]))[0])
    image = geometry(source.image(index), address, seed=seed, view=view, augmentation=augmentation)
    if augmentation.randaugment is not None:
        image = rand_augment(image, augmentation.randaugment, stream("randaugment", seed, view, address))
    if augmentation.jitters:
        image = jitter(image, augmentation.color_jitter, stream("jitter", seed, view, address))
    if augmentation.erasing:
        erase_(image, augmentation.erasing, stream("erasing", seed, view, address))
    return image


def geometry(image: Tensor, address: int, *, seed: int, view: int, augmentation: Augmentation) -> np.ndarray:
    """Return `image` (3,h,w) uint8 cropped, resized and flipped: (3,H,W), freshly allocated."""
    height, width = augmentation.size
    if augmentation.crop == "none" and not augmentation.flip:
        return np.array(fit(image, augmentation.size).numpy(), order="C")
    draws = stream("geometry", seed, view, address).random(2 * _TRIES + 3).tolist()
    mirrored = augmentation.flip and draws[0] < 0.5
    top_draw, left_draw = draws[1:3]
    if augmentation.crop == "resized":
        image = _random_area(image, augmentation, draws[3:], top_draw, left_draw)
    image = fit(image, augmentation.size)
    if augmentation.crop != "pad":  # whole rows are copied faster than picked columns
        pixels = image.numpy()
        return np.array(pixels[:, :, ::-1] if mirrored else pixels, order="C")
    rows = mirror(np.arange(height) + _shift(height, top_draw), height)
    columns = mirror(np.arange(width) + _shift(width, left_draw), width)
    return image.numpy().take(rows, axis=1).take(columns[::-1] if mirrored else columns, axis=2)


def fit(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Cut the largest centred part of the target's aspect ratio and resize it, antialiased, to `size`."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    scale = min(height / size[0], width / size[1])
    cut = min(height, max(1, round(scale * size[0]))), min(width, max(1, round(scale * size[1])))
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    return _resize(image[:, top : top + cut[0], left : left + cut[1]], size)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]


def _random_area(image: Tensor, augmentation: Augmentation, draws: list[float], top: float, left: float) -> Tensor:
    height, width = image.shape[-2:]
    size, least = augmentation.size, augmentation.crop_scale
    low, high = np.log(_RATIO[0]), np.log(_RATIO[1])
    for area_draw, ratio_draw in zip(draws[::2], draws[1::2], strict=True):
        area = height * width * (least + area_draw * (1.0 - least))
        ratio = float(np.exp(low + ratio_draw * (high - low))) * size[1] / size[0]
        rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            y, x = int(top * (height - rows + 1)), int(left * (width - columns + 1))
            return _resize(image[:, y : y + rows, x : x + columns], size)
    return image  # a very long image that no drawn box fits: the caller's centred cut is used


def _shift(length: int, draw: float) -> int:
    pad = length // 8
    return int(draw * (2 * pad + 1)) - pad


def mirror(positions: np.ndarray, length: int) -> np.ndarray:
    """Return positions up to length - 1 beyond either edge, reflected at the edges' centres into 0..length-1."""
    positions = np.abs(positions)
    return np.minimum(positions, 2 * (length - 1) - positions)


class MixParameters(NamedTuple):
    """What is mixed into a view: the partner's box (y0,y1,x0,x1), or, without one, all of it at 1 - weight / ONE.

    share: of the view's own class in the target.
    """

    partner: int
    weight: int
    box: tuple[int, int, int, int] | None
    share: float


def draw_mix(index: int, among: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator) -> MixParameters:
    """Draw how view `index` is mixed, with which of the images `among` (first, last + 1); `rng` is its own stream."""
    first, count = among[0], among[1] - among[0]
    partner = index if count < 2 else first + (index - first + 1 + int(rng.random() * (count - 1))) % count
    if augmentation.cutmix and not (augmentation.mixup and rng.random() >= 0.5):
        box, share = _draw_box(augmentation.size, augmentation.cutmix, rng)
        return MixParameters(partner, ONE, box, share)
    weight = round(rng.beta(augmentation.mixup, augmentation.mixup) * ONE)
    return MixParameters(partner, weight, None, weight / ONE)


def mixup_pair(image: np.ndarray, other: np.ndarray, weight: int | np.ndarray) -> np.ndarray:
    """Return the mean of two uint8 arrays of one shape, rounded; weight: 0..ONE, int32 where it is an array."""
    mixed = image.astype(np.int32) * weight + other.astype(np.int32) * (ONE - weight)
    return ((mixed + ONE // 2) >> 16).astype(np.uint8)


def cutmix_(image: np.ndarray, other: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Overwrite the box (y0,y1,x0,x1) of `image` (3,H,W) by that of `other`."""
    y0, y1, x0, x1 = box
    image[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]


def _draw_box(size: tuple[int, int], alpha: float, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], float]:
    """Return a box (y0,y1,x0,x1) and the share of pixels outside of it."""
    height, width = size
    side = (1.0 - rng.beta(alpha, alpha)) ** 0.5
    rows, columns = round(height * side), round(width * side)
    top, left = int(rng.random() * height) - rows // 2, int(rng.random() * width) - columns // 2
    y0, y1 = max(top, 0), min(top + rows, height)
    x0, x1 = max(left, 0), min(left + columns, width)
    return (y0, y1, x0, x1), 1.0 - (y1 - y0) * (x1 - x0) / (height * width)
