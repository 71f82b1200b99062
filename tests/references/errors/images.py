"""Image files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from references.errors.case import Case
from references.errors.shelf import FINETUNE, write
from uhkd.data import open_data
from uhkd.data.decode import decode_file, from_any

TRAIN = f"{FINETUNE} --data images --batch-size 7"  # three batches, which leave no image out
IMAGES = {"has": ("images",)}


def replaced(ending: str, content: str | bytes) -> None:
    """images/bee/0.png becomes another file."""
    Path("images/bee/0.png").unlink()
    write(f"images/bee/0.{ending}", content)


def cut(ending: str, image_format: str) -> None:
    """A picture of which the second half is missing."""
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole, image_format)
    replaced(ending, whole.getvalue()[: len(whole.getvalue()) // 2])


def bomb() -> None:
    """A PNG of a few bytes that promises 60000 x 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    replaced("png", b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def pixel(name: str, image: Image.Image, **options: object) -> str:
    """The first pixel and the size that are read of a picture."""
    image.save(name, **options)
    found = decode_file(name)
    red, green, blue = (int(v) for v in found[:, 0, 0])
    return f"is read as RGB: pixel ({red}, {green}, {blue}), {found.shape[2]} wide, {found.shape[1]} high"


def turned() -> str:
    """A picture whose EXIF block says that the camera was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 1), (200, 100, 50))
    return pixel("a.png", image, exif=exif)


def broken_exif() -> str:
    return pixel("a.png", Image.new("RGB", (4, 2), (200, 100, 50)), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\xff\xff")


def clear() -> str:
    return pixel("a.png", Image.new("RGBA", (4, 2), (200, 100, 50, 0)))


def moving() -> str:
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "blue")]
    return pixel("a.gif", frames[0], save_all=True, append_images=frames[1:])


def skipping() -> str:
    write("images/bee/3.png", "hello")
    data = open_data("images", skip_bad_images=True)
    assert len(data.train) + len(data.val) == 23
    return data.notes[0]


def dark() -> str:
    for name in ("a", "b"):
        for i in range(2):
            Path("images", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(f"images/{name}/{i}.png")
    return open_data("images").notes[0]


def tiff(*pages: str) -> None:
    """images/bee/0.tif with pages of these modes; RGBX has a fourth channel that is no transparency."""
    content = io.BytesIO()
    first, *others = (Image.new(mode, (16, 16)) for mode in pages)
    first.save(content, "TIFF", save_all=True, append_images=others)
    replaced("tif", content.getvalue())


CASES = (
    Case(
        "a text file named .jpg",
        TRAIN,
        "image file images/bee/0.jpg cannot be decoded (…): replace or remove it, or train with "
        "--skip-bad-images; the checkpoint of step 0 is kept",
        **IMAGES,
        make=lambda: replaced("jpg", "hello"),
    ),
    Case(
        "an empty image file",
        TRAIN,
        "image file images/bee/0.png cannot be decoded (…): replace or remove it, or train with "
        "--skip-bad-images; the checkpoint of step 0 is kept",
        **IMAGES,
        make=lambda: replaced("png", ""),
    ),
    Case(
        "a JPEG cut short",
        TRAIN,
        "image file images/bee/0.jpg cannot be decoded (…): replace or remove it, or train with "
        "--skip-bad-images; the checkpoint of step 0 is kept",
        **IMAGES,
        make=lambda: cut("jpg", "JPEG"),
    ),
    Case(
        "a PNG cut short",
        TRAIN,
        "image file images/bee/0.png cannot be decoded (…): replace or remove it, or train with "
        "--skip-bad-images; the checkpoint of step 0 is kept",
        **IMAGES,
        make=lambda: cut("png", "PNG"),
    ),
    Case(
        "a small file that declares 60000 x 60000 pixels",
        TRAIN,
        "image file images/bee/0.png is too large (60,000 x 60,000 pixels, more than the 178,956,970 that are allowed): replace "
        "or remove it, train with --skip-bad-images, or, if it is correct and memory suffices, set the environment variable "
        "UHKD_MAX_PIXELS to more; the checkpoint of step 0 is kept",
        **IMAGES,
        make=lambda: bomb(),
    ),
    Case(
        "a multispectral TIFF",
        TRAIN,
        "image file images/bee/0.tif cannot be decoded (it has 4 channels, and images are read as grey or RGB: write the "
        "channels to use as an RGB image): replace or remove it, or train with --skip-bad-images; the checkpoint of step 0 is "
        "kept",
        **IMAGES,
        make=lambda: tiff("RGBX"),
    ),
    Case(
        "`--skip-bad-images`, and one file is bad",
        skipping,
        "1 image in images cannot be decoded: skipped (bee/3.png)",
        **IMAGES,
        refused=False,
    ),
    Case(
        "`--skip-bad-images`, and a class has no good file",
        f"{TRAIN} --skip-bad-images",
        "class folder images/bee has no image that can be decoded: add images",
        **IMAGES,
        make=lambda: [write(f"images/bee/{i}.png", "hello") for i in range(8)],
    ),
    Case(
        "a CMYK image",
        lambda: pixel("a.tif", Image.new("CMYK", (4, 2), (0, 255, 255, 0))),
        "is read as RGB: pixel (255, 0, 0), 4 wide, 2 high",
        refused=False,
    ),
    Case(
        "a 16-bit greyscale image",
        lambda: pixel("a.png", Image.fromarray(np.full((2, 4), 51400, np.uint16))),
        "is read as RGB: pixel (200, 200, 200), 4 wide, 2 high",
        refused=False,
    ),
    Case(
        "a greyscale TIFF of floats",
        lambda: pixel("a.tif", Image.fromarray(np.full((2, 4), 0.4, np.float32))),
        "is read as RGB: pixel (102, 102, 102), 4 wide, 2 high",
        refused=False,
    ),
    Case(
        "a 1-bit image",
        lambda: pixel("a.png", Image.new("1", (4, 2), 1)),
        "is read as RGB: pixel (255, 255, 255), 4 wide, 2 high",
        refused=False,
    ),
    Case(
        "an image with an EXIF rotation",
        turned,
        "is read as RGB: pixel (200, 100, 50), 2 wide, 4 high",
        refused=False,
    ),
    Case(
        "an image with a broken EXIF block",
        broken_exif,
        "is read as RGB: pixel (200, 100, 50), 4 wide, 2 high",
        refused=False,
    ),
    Case("a transparent image", clear, "is read as RGB: pixel (255, 255, 255), 4 wide, 2 high", refused=False),
    Case("an animated image", moving, "is read as RGB: pixel (255, 0, 0), 4 wide, 2 high", refused=False),
    Case(
        "an array that is not an image",
        lambda: from_any(np.zeros((2, 3, 4, 5), np.uint8)),
        "an image must be grey (H,W) or have 1 or 3 channels, found shape (2, 3, 4, 5): choose three of them (an image with "
        "transparency can be given as a Pillow image)",
    ),
    Case(
        "an image that is already normalised",
        lambda: from_any(np.full((4, 4, 3), -1.5, np.float32)),
        "image values must be floats in [0,1] or integers in 0..255, found float32 from -1.5 to -1.5: remove "
        "a normalising transform, because each network normalises its input",
    ),
    Case(
        "an image of floats up to 255",
        lambda: from_any(np.full((4, 4, 3), 200, np.float32)),
        "image values must be floats in [0,1] or integers in 0..255, found float32 from 200 to 200: divide by 255",
    ),
    Case(
        "a greyscale TIFF of floats below 0",
        lambda: pixel("a.tif", Image.fromarray(np.full((2, 4), -3, np.float32))),
        "image file a.tif cannot be decoded (its values go from -3 to -3, and its format defines no black and white: scale them "
        "to 0..1, or to the range of 8 or 16 bits): replace or remove it, or train with --skip-bad-images",
    ),
    Case(
        "files of 16 bits that use 12 of them",
        dark,
        "4 sampled images are nearly black (values up to 16 of 255): scale them to the whole range, for example if files of 16 "
        "bits use only 12, or if values were divided by 255 twice",
        refused=False,
    ),
    Case(
        "a data set with images of four channels",
        lambda: from_any(np.zeros((64, 64, 4), np.uint8)),
        "an image must be grey (H,W) or have 1 or 3 channels, found 4 channels, shape (64, 64, 4): choose three of them (an "
        "image with transparency can be given as a Pillow image)",
    ),
)
