"""Decode image files, Pillow images, arrays and tensors to uint8 RGB tensors."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from uhkd.console import escape
from uhkd.data.channels import check_tiff
from uhkd.data.formats import open_content
from uhkd.errors import UhkdError

LARGEST = 178_956_970  # pixels, above which Pillow raises by default: 13,377 x 13,377, half a GB as bytes
_LIMIT_VARIABLE = "UHKD_MAX_PIXELS"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WITH_ALPHA = frozenset(("RGBA", "LA", "PA", "RGBa", "La"))
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on exchange width and height


class BadImage(UhkdError):
    """An image file that cannot be decoded, or is too large.

    reason: why, without the name of the file and without advice.
    """

    reason = ""


def decode_file(path: str | Path) -> UInt8[Tensor, "3 h w"]:
    """Decode the image file at `path` (its first frame) as RGB, rotated by its EXIF orientation.

    Raises:
        BadImage: the file cannot be read or decoded completely, or has more pixels than `max_pixels` allows; with its name.
    """
    with _opened(path, f"image file {escape(str(path))}") as image:
        return from_pil(image)


def decode_bytes(content: bytes, title: str) -> UInt8[Tensor, "3 h w"]:
    """Decode the content of an image file, as `decode_file` does; title: its name in messages."""
    with _opened(content, title) as image:
        return from_pil(image)


@contextmanager
def _opened(content: str | Path | bytes, title: str = "") -> Iterator[Image.Image]:
    """Open an image of a supported format and size: its header is read, its pixels are not.

    Every error of opening and, in the block below `with`, of decoding becomes a `BadImage` with advice.
    """
    limit = max_pixels()
    if limit > LARGEST and Image.MAX_IMAGE_PIXELS is not None:
        # Pillow's readers of WebP, GIF and TIFF check this too
        Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS)
    try:
        with io.BytesIO(content) if isinstance(content, bytes) else Path(content).open("rb") as file:
            if file.read(4) in _TIFF:
                file.seek(0)
                check_tiff(file)
            file.seek(0)
            with open_content(file) as image:
                _check_size(image, limit)
                yield image
                _check_size(image, limit)  # of an icon, only decoding tells the size of the image in it
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        advice = "replace or remove it, train with --skip-bad-images, or, if it is correct and memory suffices, set the"
        advice += f" environment variable {_LIMIT_VARIABLE} to more"
        raise _bad_image(title, f"is too large ({error})", advice) from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        reason = f"cannot be decoded ({escape(describe(error))[:200]})"
        raise _bad_image(title, reason, "replace or remove it, or train with --skip-bad-images") from error


def _bad_image(title: str, reason: str, advice: str) -> BadImage:
    error = BadImage(f"{title} {reason}: {advice}")
    error.reason = reason
    return error


def _check_size(image: Image.Image, limit: int) -> None:
    width, height = image.size
    if width * height > limit:
        raise Image.DecompressionBombError(f"{width:,} x {height:,} pixels, more than the {limit:,} that are allowed")


def describe(error: Exception) -> str:
    """Return the message of an error in one line, with its type unless it is a message for users."""
    message = " ".join(str(error).split())
    return message if isinstance(error, UhkdError) else f"{type(error).__name__}: {message}"


def max_pixels() -> int:
    """Return the largest number of pixels of an image file: the environment variable UHKD_MAX_PIXELS, or `LARGEST`.

    Raises:
        UhkdError: UHKD_MAX_PIXELS is not a whole number above 0.
    """
    value = os.environ.get(_LIMIT_VARIABLE, str(LARGEST))
    if not value.isdecimal() or int(value) < 1:
        raise UhkdError(f"{_LIMIT_VARIABLE} must be a whole number of pixels above 0, found {value!r}")
    return int(value)


def decodable(count: int, decode: Callable[[int], object]) -> Bool[np.ndarray, " n"]:
    """Return whether each of `count` images can be decoded: (N,), by several threads.

    decode: called with the image's index. Errors other than `BadImage` are raised: a shard that cannot be read, for example
    because of a network failure, must not count as bad images.
    """

    def decodes(index: int) -> bool:
        try:
            decode(index)
        except BadImage:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        return np.fromiter(pool.map(decodes, range(count)), dtype=bool, count=count)


def header_size(content: str | Path | bytes) -> tuple[int, int] | None:
    """Return the (height, width) in an image file's header, after EXIF rotation; None if unreadable.

    content: the file's path, or its bytes.
    """
    try:
        with _opened(content) as image:
            width, height = image.size
            rotated = image.getexif().get(_ORIENTATION, 1) >= 5
            return (width, height) if rotated else (height, width)
    except Exception:  # reading the image will raise an error with its name
        return None


def common_size(count: int, content: Callable[[int], Path | bytes], headers: int) -> tuple[int, int] | None:
    """Return the (height, width) of `count` images, if those of up to `headers` of them are equal; else None.

    content: called with the image's index, returns the file's path or its bytes.
    """
    indices = np.unique(np.linspace(0, count - 1, headers).astype(int))
    sizes = {header_size(content(int(i))) for i in indices} - {None}
    return sizes.pop() if len(sizes) == 1 else None


def from_pil(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Convert any Pillow mode to RGB; transparency is composited on white, grey of more bits is scaled to 8."""
    image.load()  # damaged pixels raise here, so that only the EXIF block can raise below
    with suppress(Exception):  # with a broken EXIF block the image is not rotated
        if image.getexif().get(_ORIENTATION, 1) != 1:  # saves a copy by Pillow
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # only integers have a white that the format defines: a PFM holds floats
        deep = "I;16" in image.mode or (image.mode == "I" and image.format in ("PNG", "PPM"))
        return _from_deep_grey(np.asarray(image), 65535 if deep else None)
    if image.mode == "RGBX":
        raise UhkdError("it has 4 channels, and the last is no transparency: convert it to RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def from_any(image: object) -> UInt8[Tensor, "3 h w"]:
    """Convert an item of a user's data set: a Pillow image, or a tensor or array of 1 or 3 channels.

    Integers are in 0..255 (uint16 is scaled), floats in [0,1]. Where both are possible, tensors are CHW and arrays HWC.

    Raises:
        UhkdError: another type, shape or range of values.
    """
    if isinstance(image, Image.Image):
        return from_pil(image)
    if isinstance(image, Tensor):
        array, channels_first = image.detach().cpu().numpy(), True
    elif isinstance(image, np.ndarray):
        array, channels_first = image, False
    else:
        raise UhkdError(f"an image must be a Pillow image, a tensor or an array, found {type(image).__name__}")
    array = _to_bytes(_channels_last(array, channels_first))
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))


def _channels_last(array: np.ndarray, channels_first: bool) -> np.ndarray:
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3 and 0 not in array.shape:
        first, last = array.shape[0] in (1, 3), array.shape[-1] in (1, 3)
        if first and (channels_first or not last):
            return array.transpose(1, 2, 0)
        if last:
            return array
    found = f"{min(array.shape[0], array.shape[-1])} channels, " if array.ndim == 3 else ""
    raise UhkdError(
        f"an image must be grey (H,W) or have 1 or 3 channels, found {found}shape {tuple(array.shape)}: choose three of them "
        "(an image with transparency can be given as a Pillow image)"
    )


def _to_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.int64) + 128) // 257).astype(np.uint8)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 1:
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    how = "remove a normalising transform, because each network normalises its input"
    raise UhkdError(
        f"image values must be floats in [0,1] or integers in 0..255, found {array.dtype} "
        f"from {low:.4g} to {high:.4g}: {'divide by 255' if low >= 0 and high <= 255 else how}"
    )


def _from_deep_grey(array: np.ndarray, white: int | None) -> UInt8[Tensor, "3 h w"]:
    values = np.nan_to_num(array.astype(np.float64))
    # 32-bit and float files do not define white: take the smallest common maximum that is not exceeded
    low, high = values.min(), values.max()
    if white is None and (low < 0 or high > 65535):
        raise UhkdError(
            f"its values go from {low:.4g} to {high:.4g}, and its format defines no black and white: scale them to 0..1, or to "
            "the range of 8 or 16 bits"
        )
    scale = white or next(maximum for maximum in (1, 255, 65535) if high <= maximum)
    grey = np.rint(np.clip(values / scale, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(np.repeat(grey[None], 3, axis=0))
