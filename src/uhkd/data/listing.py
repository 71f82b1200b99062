"""List folders of images: names only, no file is opened."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from uhkd.data.formats import ending_of, is_image_name


def children(folder: Path, other_files: Counter[str] | None = None) -> tuple[list[Path], list[str]]:
    """Return the subfolders and the names of images, sorted, without hidden ones; other_files: counts other files by ending."""
    folders, names = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            folders.append(Path(entry.path))
        else:
            names.append(entry.name)
    return folders, _images(names, other_files)


def images_below(folder: Path, root: Path, other_files: Counter[str] | None = None) -> list[str]:
    """Return the images in a folder, sorted, as paths below `root`; other_files: counts other files by ending."""
    names: list[str] = []
    for path, images in _walk(folder, other_files):
        prefix = Path(path).relative_to(root).as_posix()
        names += [f"{prefix}/{name}" for name in images]
    return sorted(names)


def has_images(folder: Path) -> bool:
    """Return whether there is an image in a folder, at any depth."""
    return any(images for _, images in _walk(folder, None))


def _walk(folder: Path, other_files: Counter[str] | None) -> Iterator[tuple[str, list[str]]]:
    """Yield folders with their images; links are followed, but no folder is read twice, and none above `folder`."""
    visited = {_identity(parent) for parent in folder.resolve().parents}
    for path, folders, files in os.walk(folder, followlinks=True):
        if (identity := _identity(path)) in visited:
            folders.clear()
            continue
        visited.add(identity)
        # sorted: which of several links is followed must not depend on the file system
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield path, _images([name for name in files if not is_hidden(name)], other_files)


def _images(names: list[str], other_files: Counter[str] | None) -> list[str]:
    images = [name for name in names if is_image_name(name)]
    if other_files is not None and len(images) < len(names):
        other_files.update(ending_of(name) for name in names if not is_image_name(name))
    return images


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
