"""Thumbnails of some validation images of a run, on one JPEG sheet, for the report."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from uhkd.data import ImageSource
from uhkd.data.resize import fit_image
from uhkd.data.splits import stratified_subset
from uhkd.errors import UhkdError
from uhkd.recipe import Resize
from uhkd.runs import write_atomically

MOST = 200  # images
LARGEST = 96  # pixels per side: a sheet of photographs has about half a megabyte
_COLUMNS = 20
_QUALITY = 90


def choose(labels: np.ndarray | None, count: int) -> Int[np.ndarray, " n"]:
    """Return sorted indices of up to `MOST` of `count` images, spread over the classes; a function of the labels alone."""
    most = min(MOST, count)
    if labels is not None and len(np.unique(labels)) <= most:
        return stratified_subset(labels, most, seed=0)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def write_sheet(
    source: ImageSource, chosen: np.ndarray, size: tuple[int, int], path: Path, resize: Resize = "crop"
) -> None:
    """Write images of a source as one JPEG with 20 per row, each brought to the shape of `size` by `resize`, as a thumbnail.

    Raises:
        UhkdError: for an image that cannot be read.
        OSError: when the file cannot be written.
    """
    scale = min(1.0, LARGEST / max(size))
    # JPEG compresses blocks of 8 x 8 pixels: with multiples of 8, neighbours do not mix
    height, width = (max(8, 8 * round(scale * side / 8)) for side in size)
    sheet = np.full((-(-len(chosen) // _COLUMNS) * height, _COLUMNS * width, 3), 255, dtype=np.uint8)
    for i, index in enumerate(chosen.tolist()):
        row, column = divmod(i, _COLUMNS)
        image = fit_image(source.image(index), (height, width), resize).permute(1, 2, 0).numpy()
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, format="JPEG", quality=_QUALITY, subsampling=0)
    write_atomically(path, content.getvalue())


def read_sheet(path: Path, count: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Return the `count` images of a sheet.

    Raises:
        UhkdError: for a file that is not a sheet of this number of images.
        OSError: when the file cannot be read.
    """
    rows = -(-count // _COLUMNS)
    with Image.open(path, formats=("JPEG",)) as image:
        width, height = image.size
        # checked before decoding: a file may declare any size
        fits = 0 < count <= MOST and width <= _COLUMNS * LARGEST and height <= rows * LARGEST
        if not fits or width % _COLUMNS or height % rows:
            raise UhkdError(f"{path} is damaged: {width} x {height} pixels is no sheet of {count} images")
        pixels = np.asarray(image.convert("RGB"))
    tiles = pixels.reshape(rows, height // rows, _COLUMNS, width // _COLUMNS, 3).swapaxes(1, 2)
    return list(tiles.reshape(rows * _COLUMNS, height // rows, width // _COLUMNS, 3)[:count])
