"""Sources of images: memory, files, or a user's data set, all read as `source.image(i)`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from uhkd.data.decode import decode_file, describe, from_any
from uhkd.errors import UhkdError

_CACHE_BYTES = 256 * 2**20  # decoded images cached per process: all of CIFAR, the first ones of a photo collection


@runtime_checkable
class ImageSource(Protocol):
    """A list of images of any size, with integer labels (N,) or None; image i is the same at each read."""

    @property
    def labels(self) -> np.ndarray | None:
        """Integer classes (N,), or None."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return image `index`: (3,H,W) uint8; images may differ in size."""
        ...


class InMemoryImages(NamedTuple):
    """A batch of cached images: image k is images[positions[k]]. `images` is the source's memory: do not write to it."""

    images: UInt8[Tensor, "n 3 h w"]
    positions: Int[np.ndarray, " b"]


def images_in_memory(source: ImageSource, indices: np.ndarray) -> InMemoryImages | None:
    """Return the images `indices`, (B,) integers, in memory; None if they have to be read one by one.

    Sources may have a method `in_memory(indices)` for this.

    Raises:
        UhkdError: an image that cannot be read, with its name.
    """
    method = getattr(source, "in_memory", None)
    return None if method is None else method(indices)


def view_keys(source: ImageSource, indices: np.ndarray) -> Integer[np.ndarray, " b"]:
    """Return the numbers that seed the views of images: (B,) keys of a source with `keys`, else `indices`.

    A source with named samples has `keys`, (N,) uint64: then a view does not depend on the position of its image.
    """
    keys = getattr(source, "keys", None)
    return indices if keys is None else keys[indices]


class ArraySource:
    """Images of one size, in memory as bytes."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None) -> None:
        """images: (N,H,W,3), (N,H,W,1) or (N,H,W), uint8."""
        grey = images[..., None] if images.ndim == 3 else images
        assert grey.dtype == np.uint8, images.dtype
        assert grey.ndim == 4, images.shape
        assert grey.shape[-1] in (1, 3), images.shape
        planes = np.broadcast_to(grey.transpose(0, 3, 1, 2), (len(grey), 3, *grey.shape[1:3]))
        self.images = torch.from_numpy(np.array(planes, order="C"))
        self.labels = None if labels is None else labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return image `index`: (3,H,W) uint8."""
        return self.images[index].clone()

    def in_memory(self, indices: np.ndarray) -> InMemoryImages | None:
        """Return all images and `indices`; None in a subclass that overrides `image`."""
        return InMemoryImages(self.images, indices) if type(self).image is ArraySource.image else None

    def fingerprint(self) -> str:
        """Return a hash of all pixels and labels."""
        return content_hash(self.images.numpy(), _label_bytes(self.labels))


class FileSource:
    """Image files, decoded on demand; decoded images are cached in memory up to a fixed size per process."""

    def __init__(self, root: Path, names: Sequence[str], labels: np.ndarray | None) -> None:
        """names: paths below root."""
        self.root = root
        self.names = tuple(names)
        self.labels = None if labels is None else labels.astype(np.int64)
        self._cached: dict[int, Tensor] = {}
        self._room = _CACHE_BYTES

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the path of image `index`."""
        return self.root / self.names[index]

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return image `index`: (3,H,W) uint8."""
        cached = self._cached.get(index)
        if cached is not None:
            return cached.clone()
        image = self.decode(index)
        if image.numel() <= self._room:
            self._room -= image.numel()
            self._cached[index] = image.clone()
        return image

    def decode(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return the image without using the cache."""
        return decode_file(self.path(index))

    def fingerprint(self) -> str:
        """Return a hash of names, labels and file sizes, independent of the path of the folder."""
        sizes = (_file_size(self.path(i)) for i in range(len(self)))
        listing = "\n".join(f"{name}\t{size}" for name, size in zip(self.names, sizes, strict=True))
        return content_hash(listing.encode("utf-8", "surrogateescape"), _label_bytes(self.labels))


class DatasetSource:
    """A user's map-style data set of (image, label) pairs or of images alone.

    steady: False if an image was found to differ between two reads.
    """

    def __init__(self, dataset: Any, labels: np.ndarray | None, title: str = "the data set") -> None:
        self.steady = True
        self.dataset = dataset
        self.labels = labels
        self.title = title

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return image `index`: (3,H,W) uint8."""
        try:
            item = self.dataset[index]
            return from_any(item[0] if isinstance(item, tuple | list) else item)
        except Exception as error:  # the user's code may raise anything
            raise UhkdError(cannot_read(index, self.title, error)) from error

    def fingerprint(self) -> str:
        """Return a hash of type, length, labels and three images (hashing all would be a pass over the data)."""
        probes = sorted({0, len(self) // 2, len(self) - 1})
        kind, pixels = type(self.dataset).__qualname__, [self.image(i).numpy() for i in probes]
        return content_hash(f"{kind} {len(self)}".encode(), _label_bytes(self.labels), *pixels)


class Split:
    """The images of another source at given positions, in the given order."""

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices.astype(np.int64)
        self.labels = None if source.labels is None else source.labels[self.indices]
        keys = getattr(source, "keys", None)
        self.keys = None if keys is None else keys[self.indices]
        shuffle = getattr(source, "shuffle", None)
        self.shuffle = shuffle and shuffle.subset(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return image `index`: (3,H,W) uint8."""
        return self.source.image(int(self.indices[index]))

    def in_memory(self, indices: np.ndarray) -> InMemoryImages | None:
        """Return the images in the memory of the whole source; None in a subclass that overrides `image`."""
        return images_in_memory(self.source, self.indices[indices]) if type(self).image is Split.image else None

    def fingerprint(self) -> str:
        """Return a hash of the whole source and the positions."""
        return content_hash(fingerprint(self.source).encode(), self.indices)


def relabelled(source: ImageSource, labels: np.ndarray | None) -> Split:
    """Return the same images, in the same order, with other labels (N,) or none."""
    split = Split(source, np.arange(len(source)))
    split.labels = labels
    return split


def fingerprint(source: ImageSource | None) -> str:
    """Return `source.fingerprint()`; of a source without that method, a hash of its type, length and labels."""
    if source is None:
        return "none"
    method = getattr(source, "fingerprint", None)
    if method is not None:
        return method()
    return content_hash(f"{type(source).__qualname__} {len(source)}".encode(), _label_bytes(source.labels))


def cannot_read(index: int, title: str, error: Exception) -> str:
    """Return the one-line message for an item that raised `error`."""
    return f"item {index} of {title} cannot be read ({describe(error)})"


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a missing file or broken link raises when it is read
        return -1


def _label_bytes(labels: np.ndarray | None) -> bytes:
    return b"unlabelled" if labels is None else np.ascontiguousarray(labels).tobytes()


def content_hash(*pieces: bytes | np.ndarray) -> str:
    """Return a hash of bytes and of arrays with their shapes and types."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            digest.update(repr((piece.shape, piece.dtype.str)).encode())
            piece = np.ascontiguousarray(piece).data.cast("B") if piece.size else b""
        digest.update(str(len(piece)).encode() + b":")
        digest.update(piece)
    return digest.hexdigest()
