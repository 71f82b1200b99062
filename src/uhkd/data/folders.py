"""Image folders: `train/` with `val/` or `test/` beside it, one folder of class folders, or images without labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uhkd.console import escape
from uhkd.data.decode import EXTENSIONS, decodable, decode_file, header_size, largest
from uhkd.data.sources import FileSource
from uhkd.errors import UhkdError

_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_HEADERS = 64  # files whose header is read to learn whether all images share one size


@dataclass(frozen=True)
class FolderParts:
    """What lies in an image folder; val and test are None where there is no such folder.

    Without class folders there are no classes, and the sources have no labels.
    """

    classes: tuple[str, ...]
    train: FileSource
    val: FileSource | None
    test: FileSource | None
    native_size: tuple[int, int] | None
    notes: tuple[str, ...]


def read_folder(
    root: Path, *, skip_bad_images: bool, class_names: tuple[str, ...] | None, unlabelled: bool = False
) -> FolderParts:
    """List the images below `root`; the classes are the sorted names of the class folders, or `class_names`.

    Training images that lie in no folder of their own have no labels, and then none have. unlabelled: folders mean nothing, at
    any depth; the first below a part only tells the order and the strata that a validation part is cut from.

    Raises:
        UhkdError: no images, images without class folders, an empty class folder, classes of val or test that train
            (or class_names) does not have, UHKD_MAX_PIXELS that is no number of pixels.
    """
    largest()  # a mistake in it is told once, not of every image
    parts, notes = _find_parts(root)
    if unlabelled or (class_names is None and _flat(parts["train"])):
        if not unlabelled:
            notes.append(f"no class folders in {parts['train']}: its images have no labels to learn from")
        return _without_classes(root, parts, notes, skip_bad_images, unlabelled)
    listings: dict[str, dict[str, list[str]]] = {}
    for part, folder in parts.items():
        listings[part], stray = _list_classes(folder, root)
        if stray:
            notes.append(f"{_images(stray)} directly in {folder}, outside the class folders: ignored")
    classes = class_names or tuple(sorted(listings["train"]))
    for part, listing in listings.items():
        unknown = sorted(set(listing) - set(classes))
        if unknown:
            known = "the classes expected here" if class_names else f"the classes of {parts['train']}"
            raise UhkdError(
                f"{parts[part]} has class folders that are not among {known}: {_some(unknown)}; "
                f"expected only: {_some(classes)}"
            )
    sources = {part: _source(root, listing, classes) for part, listing in listings.items()}
    if skip_bad_images:
        sources = {part: _drop_bad(source, parts[part], notes) for part, source in sources.items()}
    return FolderParts(
        classes, sources["train"], sources.get("val"), sources.get("test"), _common_size(sources["train"]), tuple(notes)
    )


def _flat(folder: Path) -> bool:
    """Whether a folder holds images, and none in folders below."""
    folders, images = _children(folder)
    return bool(images) and not any(_images_below(below, folder) for below in folders)


def _without_classes(
    root: Path, parts: dict[str, Path], notes: list[str], skip_bad_images: bool, strata: bool
) -> FolderParts:
    sources = {}
    for part, folder in parts.items():
        folders, images = _children(folder)
        listing = {below.name: _images_below(below, root) for below in folders}
        names = [name for below in listing.values() for name in below]
        # images in no folder come last, so that those in class folders stand where they would with labels
        prefix = folder.relative_to(root)
        names += [(prefix / name).as_posix() for name in images]
        if not names:
            raise UhkdError(f"no images found in {folder}: expected files that end in {' '.join(sorted(EXTENSIONS))}")
        counts = [*(len(below) for below in listing.values()), len(images)]
        sources[part] = FileSource(root, names, np.repeat(np.arange(len(counts)), counts) if strata else None)
    if skip_bad_images:
        sources = {part: _drop_bad(source, parts[part], notes, classes=False) for part, source in sources.items()}
    size = _common_size(sources["train"])
    return FolderParts((), sources["train"], sources.get("val"), sources.get("test"), size, tuple(notes))


def _find_parts(root: Path) -> tuple[dict[str, Path], list[str]]:
    folders, _ = _children(root)
    named = {_PARTS[folder.name.lower()]: folder for folder in reversed(folders) if folder.name.lower() in _PARTS}
    others = [folder.name for folder in folders if folder.name.lower() not in _PARTS]
    if "train" in named:
        _, images = _children(named["train"])
        # "train" may also be a class (it is one of CIFAR-100's): then it holds images and has other classes beside it
        if not images or not others:
            notes = [f"folders beside {named['train']} ignored: {_some(others)}"] if others else []
            order = [part for part in ("train", "val", "test") if part in named]
            return {part: named[part] for part in order}, notes
    elif named and not others:
        found = _some([folder.name for folder in folders])
        raise UhkdError(f"{root} holds {found} but no train folder: expected train/<class>/<image>")
    return {"train": root}, []


def _list_classes(folder: Path, root: Path) -> tuple[dict[str, list[str]], int]:
    """Map class name -> sorted image paths below `root`; also count images outside class folders."""
    class_folders, images = _children(folder)
    listing = {}
    for class_folder in class_folders:
        listing[class_folder.name] = _images_below(class_folder, root)
    if not any(listing.values()):
        if images:
            raise UhkdError(
                f"{folder} holds {_images(len(images))} but no class folders: "
                f"expected one folder for each class, {folder.name}/<class>/<image>"
            )
        raise UhkdError(
            f"no images found in {folder}: expected {folder.name}/<class>/<image>, "
            f"with files that end in {' '.join(sorted(EXTENSIONS))}"
        )
    empty = [name for name, files in listing.items() if not files]
    if empty:
        raise UhkdError(f"class folder without any image in {folder}: {_some(empty)}; add images or remove it")
    return listing, len(images)


def _children(folder: Path) -> tuple[list[Path], list[str]]:
    """Return sub-folders and image names, sorted, without hidden ones."""
    folders, images = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _hidden(entry.name):
            continue
        if entry.is_dir():
            folders.append(Path(entry.path))
        elif _is_image(entry.name):
            images.append(entry.name)
    return folders, images


def _images_below(folder: Path, root: Path) -> list[str]:
    """Images in a class folder, links followed; a folder to which several links lead, or which lies above, is read once."""
    found: list[str] = []
    read = {_identity(above) for above in folder.resolve().parents}
    for place, folders, files in os.walk(folder, followlinks=True):
        if (identity := _identity(place)) in read:
            folders.clear()
            continue
        read.add(identity)
        # sorted: which of several links is taken must not depend on the file system
        folders[:] = sorted(name for name in folders if not _hidden(name))
        prefix = Path(place).relative_to(root).as_posix()
        found += [f"{prefix}/{name}" for name in files if _is_image(name) and not _hidden(name)]
    return sorted(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    """What two names of one folder have in common."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS and "." in name


def _source(root: Path, listing: dict[str, list[str]], classes: tuple[str, ...]) -> FileSource:
    names = [name for label in classes for name in listing.get(label, ())]
    counts = [len(listing.get(label, ())) for label in classes]
    return FileSource(root, names, np.repeat(np.arange(len(classes)), counts))


def _drop_bad(source: FileSource, folder: Path, notes: list[str], *, classes: bool = True) -> FileSource:
    good = decodable(len(source), lambda i: decode_file(source.path(i)))
    if good.all():
        return source
    bad = [source.names[i] for i in np.flatnonzero(~good)]
    notes.append(f"{_images(len(bad))} in {folder} cannot be decoded: skipped ({_some(bad)})")
    if not classes and not good.any():
        raise UhkdError(f"{folder} has no image that can be decoded: add images")
    for label in np.unique(source.labels[~good]) if classes and source.labels is not None else ():
        if not good[source.labels == label].any():
            name = Path(source.names[int(np.flatnonzero(source.labels == label)[0])]).relative_to(
                folder.relative_to(source.root)
            )
            raise UhkdError(f"class folder {folder / name.parts[0]} has no image that can be decoded: add images")
    labels = None if source.labels is None else source.labels[good]
    return FileSource(source.root, [source.names[i] for i in np.flatnonzero(good)], labels)


def _common_size(source: FileSource) -> tuple[int, int] | None:
    looked_at = np.unique(np.linspace(0, len(source) - 1, _HEADERS).astype(int))
    sizes = {header_size(source.path(int(i))) for i in looked_at} - {None}
    return sizes.pop() if len(sizes) == 1 else None


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _some(names: list[str] | tuple[str, ...], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(escape, names[:limit])) + more
