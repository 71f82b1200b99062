"""RandAugment, colour jitter and random erasing of crops, each drawn from a given generator."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from uhkd.errors import UhkdError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for fills and erasing noise
_SHIFT = 0.45  # share of the shorter side that RandAugment may translate by at full magnitude, where it is absolute
_GREY = (0.2989, 0.587, 0.114)
_AREA, _ASPECT, _TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # erased box: share of the image, height over width


def check_randaugment(config: str) -> None:
    """Check that timm can apply the RandAugment configuration `config`; its syntax is checked by `AugmentationOptions`.

    Raises:
        UhkdError: a configuration that timm cannot apply, such as more weighted operations than exist.
    """
    try:
        rand_augment_all_(np.zeros((1, 3, 8, 8), dtype=np.uint8), config, [np.random.default_rng(0)])
    except (ValueError, AssertionError) as error:
        raise UhkdError(
            f"randaugment must be a configuration of timm's such as rand-m9-mstd0.5-inc1, found {config!r}: {error}"
        ) from None


def rand_augment_all_(images: np.ndarray, config: str, rngs: Iterable[np.random.Generator]) -> None:
    """Apply timm's RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in place to `images` (B,3,H,W) uint8.

    rngs: one generator per image. The state of the global generators is saved and restored once per batch: doing so takes
    about as long as the changes to one small image.
    """
    with _preserve_globals():
        for row, rng in enumerate(rngs):
            images[row] = _rand_augment(images[row], config, rng)


def _rand_augment(image: np.ndarray, config: str, rng: np.random.Generator) -> np.ndarray:
    transform = _transform(config, min(image.shape[1:]))
    random.seed(int(rng.integers(1 << 62)))  # timm draws from Python's and NumPy's global generators
    np.random.seed(int(rng.integers(1 << 32)))
    return np.asarray(transform(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))))).transpose(2, 0, 1)


@cache
def _transform(config: str, side: int) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform  # importing timm takes seconds

    fill = tuple(min(255, round(255 * mean)) for mean in _MEAN)
    transform = rand_augment_transform(config, {"translate_const": int(side * _SHIFT), "img_mean": fill})
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Posterize; timm passes 0 bits at full magnitude, which gave black before Pillow 13, where it is an error."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


@contextmanager
def _preserve_globals() -> Iterator[None]:
    """Restore the state of Python's and NumPy's global generators at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return `image` (3,H,W) uint8 with brightness, contrast and saturation scaled by factors in [1 - strength, 1 + strength].

    In random order, by torchvision's formulas. Its functions are not used: their mean over a large image depends on the
    number of threads.
    """
    factors = rng.uniform(1 - strength, 1 + strength, 3).tolist()
    for kind in rng.permutation(3).tolist():
        if kind == 0:
            other = np.float32(0)
        else:
            red, green, blue = (np.float32(share) * image[c] for c, share in enumerate(_GREY))
            other = (red + green + blue).astype(np.uint8)
            other = np.float32(other.mean(dtype=np.float64)) if kind == 1 else other
        mixed = np.float32(factors[kind]) * image + np.float32(1 - factors[kind]) * other
        image = mixed.clip(0, 255).astype(np.uint8)
    return image


def erase_(image: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Overwrite one random box of `image` (3,H,W) uint8 with noise, with the given probability (arXiv 1708.04896).

    The box covers 0.02 to 1/3 of the image at an aspect ratio of 0.3 to 1/0.3, and is smaller than the image in height and
    width; after ten boxes that do not fit, nothing is erased. timm draws normal noise on normalised images; here images are
    not normalised yet, so the noise is scaled by ImageNet's deviation and mean and clipped to 0..255.
    """
    if rng.random() >= probability:
        return
    height, width = image.shape[1:]
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*_AREA)
        aspect = float(np.exp(rng.uniform(*np.log(_ASPECT))))
        rows, columns = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rows < height and columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (_MEAN, _STD))
            noise = mean + std * rng.standard_normal((3, rows, columns), dtype=np.float32)
            image[:, top : top + rows, left : left + columns] = (255 * noise).round().clip(0, 255).astype(np.uint8)
            return
