"""Real tar shards of small images, made for tests."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Member = tuple[str, bytes]


def picture(number: int, size: int = 12) -> bytes:
    """A PNG whose red pixels say its number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels[..., 0] = number % 256
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def number_of(image: np.ndarray) -> int:
    """The number of a picture, (3, H, W)."""
    return int(image[0, 0, 0])


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    """A plain tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, classes: int = 4, key: str | None = None) -> list[Member]:
    """Image and class of one sample, as WebDataset has them."""
    key = key or f"{number:06d}"
    return [(f"{key}.png", picture(number)), (f"{key}.cls", str(number % classes).encode())]


def write_shards(folder: Path, sizes: Sequence[int], part: str = "train", first: int = 0, classes: int = 4) -> Path:
    """Shards PART-0000.tar and on, of so many samples each, numbered from `first`."""
    for shard, size in enumerate(sizes):
        numbers = range(first, first + size)
        write_tar(folder / f"{part}-{shard:04d}.tar", [member for n in numbers for member in sample(n, classes)])
        first += size
    return folder
