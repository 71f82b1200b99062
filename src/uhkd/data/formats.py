"""Image formats: recognised by content; in a folder, the ending of a name decides which files are opened as images."""

import functools
import importlib
from collections import Counter
from contextlib import suppress
from typing import Any

from PIL import Image

from uhkd.console import escape
from uhkd.errors import UhkdError

# Formats that Pillow decodes itself and that begin with a signature, weak signatures last. Not read: EPS and WMF (run another
# program), IPTC (opens any other format inside), MPEG, BUFR, GRIB and HDF5 (no pixels), and IM, PCD, SPIDER and the like.
_SIGNED = (
    *(
        "JPEG",
        "PNG",
        "GIF",
        "WEBP",
        "TIFF",
        "PPM",
        "AVIF",
        "HEIF",
        "JPEG2000",
        "PSD",
        "QOI",
        "DDS",
        "ICNS",
        "SUN",
        "FITS",
    ),
    *("XPM", "XBM", "BLP", "FTEX", "MSP", "PIXAR", "DCX", "FLI", "ICO", "CUR", "SGI", "BMP", "PCX", "DIB"),
)
_UNSIGNED = ("TGA",)
_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_HEIF_ENDINGS = frozenset(("heic", "heif", "hif"))
_NEEDS_PLUGIN = "HEIC needs the package pillow-heif: pip install pillow-heif"
_OTHER_CONTENT = {
    b"%!PS": "PostScript",
    b"%PDF": "a PDF document",
    b"<": "an HTML page or XML, such as the answer of a server to a failed download",
    b"vers": "text, such as a pointer of Git LFS to a file that was not downloaded",
    b"\x93NUM": "a NumPy array",
    b"PK\x03\x04": "a zip archive",
}


@functools.cache
def _readers() -> dict[str, tuple[Any, Any]]:
    """Return the class that reads a format and the function that recognises it, by name; HEIF only if its plugin is installed."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return {name: Image.OPEN[name] for name in (*_SIGNED, *_UNSIGNED) if name in Image.OPEN}


@functools.cache
def endings() -> frozenset[str]:
    """Return the endings of image files, in lower case and without dot."""
    readable = {*_readers(), "MPO"}  # MPO: several JPEG images, of which the first is read
    return frozenset(ending[1:] for ending, name in Image.registered_extensions().items() if name in readable)


def is_image_name(name: str) -> bool:
    """Return whether a file name ends as those of images do."""
    return ending_of(name) in endings()


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, without dot; "" if it has none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def describe_other_files(other_files: Counter[str]) -> str:
    """Return '3 .txt, 1 without ending' for the numbers of files by ending that are no images; "" for none."""
    common = other_files.most_common(12)
    parts = [f"{count:,} {'.' + escape(ending) if ending else 'without ending'}" for ending, count in common]
    if (rest := len(other_files) - len(parts)) > 0:
        parts.append(f"and {rest} more endings")
    return ", ".join(parts) + (f" ({_NEEDS_PLUGIN})" if _HEIF_ENDINGS & other_files.keys() else "")


def open_content(file: Any) -> Image.Image:
    """Open an image by the content of a binary file; its header is read, its pixels are not.

    `Image.open` is not used: it does not tell why a file of a known format is damaged, and from half of the limit of pixels on it
    warns, which is an error or not depending on the filters for warnings.

    Raises:
        UhkdError: the content is of no format that is read.
        Exception: the content is of such a format and damaged; any type.
    """
    start = file.read(16)
    failure: Exception | None = None
    for factory, accept in _readers().values():
        if accept is None or accept(start.ljust(16, b"\0")) is True:
            try:
                file.seek(0)
                return factory(file, "")
            except Exception as error:  # of several, the first tells best what is damaged
                failure = failure or (None if accept is None else error)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF and "HEIF" not in _readers():
        raise UhkdError(_NEEDS_PLUGIN)
    if failure is not None:
        raise failure
    content = "the file is empty" if not start else "its content is of no image format that can be read"
    other = next((name for prefix, name in _OTHER_CONTENT.items() if start.lstrip().startswith(prefix)), None)
    raise UhkdError(f"its content is {other}" if other else content)
