"""The channels of a TIFF file, of which Pillow would silently leave some out."""

from typing import BinaryIO

from PIL import TiffImagePlugin

from uhkd.errors import UhkdError

# channels by PhotometricInterpretation: grey, RGB, palette, CMYK ...
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_ALPHA = (1, 2)  # values of ExtraSamples


def check_tiff(file: BinaryIO) -> None:
    """Raise UhkdError for a TIFF file with channels beyond those of its colours and one of transparency (first page)."""
    start = file.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(start + file.read(8) if start[2:4] in (b"+\0", b"\0+") else start)
    file.seek(directory.next)
    directory.load(file)
    samples, extra = directory.get(277) or 1, directory.get(338, ())
    colours = _COLOURS.get(directory.get(262, -1), samples)
    alpha = samples == colours + 1 and extra[:1] and extra[0] in _ALPHA
    if samples > colours and not alpha:
        raise UhkdError(
            f"it has {samples} channels, and images are read as grey or RGB: write the channels to use as an RGB image"
        )
