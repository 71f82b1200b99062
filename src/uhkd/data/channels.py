"""The channels of a TIFF file, of which Pillow would silently leave some out."""

from typing import BinaryIO

from PIL import TiffImagePlugin

from uhkd.errors import UhkdError

_COLOURS = {
    0: 1,
    1: 1,
    2: 3,
    3: 1,
    5: 4,
    6: 3,
    8: 3,
}  # channels by PhotometricInterpretation: grey, RGB, palette, CMYK ...
_ALPHA = (1, 2)  # values of ExtraSamples
_MOST_PAGES = 1000
_MESSAGE = "it has {found}, and images are read as grey or RGB: write the channels to use as an RGB image"


def check_tiff(file: BinaryIO) -> None:
    """Raise UhkdError for a TIFF file with channels beyond those of its colours and one of transparency.

    The channels may be samples of a pixel, or pages of one size and one channel each.
    """
    start = file.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(start + file.read(8) if start[2:4] in (b"+\0", b"\0+") else start)
    pages: list[tuple[int, int, int]] = []
    while (offset := directory.next) and len(pages) < _MOST_PAGES:
        file.seek(offset)
        directory.load(file)
        samples, extra = directory.get(277) or 1, directory.get(338, ())
        pages.append((directory.get(256, 0), directory.get(257, 0), samples))
        colours = _COLOURS.get(directory.get(262, -1), samples)
        alpha = samples == colours + 1 and extra[:1] and extra[0] in _ALPHA
        if len(pages) == 1 and samples > colours and not alpha:
            raise UhkdError(_MESSAGE.format(found=f"{samples} channels"))
    stack = [page for page in pages if page == pages[0]]
    if len(stack) > 1 and stack[0][2] == 1:
        raise UhkdError(_MESSAGE.format(found=f"{len(stack)} pages of one channel and size"))
