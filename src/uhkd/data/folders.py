"""Image folders: `train/` with `val/` or `test/`, one folder of class folders, or images without labels."""

import os
from pathlib import Path

import numpy as np

from uhkd.console import listed, pluralize
from uhkd.data.datasets import RawSplits
from uhkd.data.decode import EXTENSIONS, common_size, decodable, decode_file, max_pixels
from uhkd.data.sources import FileSource
from uhkd.errors import UhkdError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_HEADERS = 64  # files whose header is read to check whether all images have one size


def read_folder(
    root: Path, *, skip_bad_images: bool, class_names: tuple[str, ...] | None, unlabelled: bool = False
) -> RawSplits:
    """List the images below `root`; the classes are `class_names`, or the sorted names of the class folders.

    If the training images are in no subfolder, no split has labels.

    Args:
        root: the folder.
        skip_bad_images: decode every file once and leave out those that fail.
        class_names: names and order of the classes, for example of a trained model.
        unlabelled: ignore the meaning of folders, at any depth; the subfolders of a split only fix the order of its images
            and the strata from which a validation split is cut.

    Raises:
        UhkdError: no images, images without class folders, an empty class folder, classes in val or test that train (or
            class_names) does not have, or an invalid UHKD_MAX_PIXELS.
    """
    max_pixels()  # reports an invalid value once, not for every image
    splits, notes = _find_splits(root)
    if unlabelled or (class_names is None and _is_flat(splits["train"])):
        if not unlabelled:
            notes.append(f"no class folders in {splits['train']}: its images have no labels to learn from")
        classes: tuple[str, ...] = ()
        sources = {split: _source_without_classes(root, folder, unlabelled) for split, folder in splits.items()}
    else:
        listings = {split: _list_classes(folder, root, notes) for split, folder in splits.items()}
        classes = class_names or tuple(sorted(listings["train"]))
        for split, listing in listings.items():
            if unknown := sorted(set(listing) - set(classes)):
                expected = "the classes expected here" if class_names else f"the classes of {splits['train']}"
                raise UhkdError(
                    f"{splits[split]} has class folders that are not among {expected}: {listed(unknown)}; "
                    f"expected only: {listed(classes)}"
                )
        sources = {split: _source(root, listing, classes) for split, listing in listings.items()}
    if skip_bad_images:
        sources = {
            split: _without_bad_images(source, splits[split], notes, bool(classes)) for split, source in sources.items()
        }
    train = sources["train"]
    size = common_size(len(train), train.path, _HEADERS)
    return RawSplits(classes, train, sources.get("val"), sources.get("test"), size, tuple(notes))


def _is_flat(folder: Path) -> bool:
    """Return whether a folder contains images, and its subfolders none."""
    folders, images = _children(folder)
    return bool(images) and not any(_images_below(subfolder, folder) for subfolder in folders)


def _source_without_classes(root: Path, folder: Path, strata: bool) -> FileSource:
    folders, images = _children(folder)
    groups = [_images_below(subfolder, root) for subfolder in folders]
    # images in no subfolder come last, so that the order of those in class folders is the same as with labels
    prefix = folder.relative_to(root)
    groups.append([(prefix / name).as_posix() for name in images])
    names = [name for group in groups for name in group]
    if not names:
        raise UhkdError(f"no images found in {folder}: expected files that end in {' '.join(sorted(EXTENSIONS))}")
    return FileSource(root, names, np.repeat(np.arange(len(groups)), [len(g) for g in groups]) if strata else None)


def _find_splits(root: Path) -> tuple[dict[str, Path], list[str]]:
    folders, _ = _children(root)
    named = {_SPLITS[folder.name.lower()]: folder for folder in reversed(folders) if folder.name.lower() in _SPLITS}
    others = [folder.name for folder in folders if folder.name.lower() not in _SPLITS]
    if "train" in named:
        _, images = _children(named["train"])
        # "train" may also be a class, as in CIFAR-100: then it contains images, and other class folders are next to it
        if not images or not others:
            notes = [f"folders next to {named['train']} ignored: {listed(others)}"] if others else []
            return {split: named[split] for split in ("train", "val", "test") if split in named}, notes
    elif named and not others:
        present = listed([folder.name for folder in folders])
        raise UhkdError(f"{root} holds {present} but no train folder: expected train/<class>/<image>")
    return {"train": root}, []


def _list_classes(folder: Path, root: Path, notes: list[str]) -> dict[str, list[str]]:
    """Return class name -> sorted image paths below `root`."""
    class_folders, images = _children(folder)
    listing = {class_folder.name: _images_below(class_folder, root) for class_folder in class_folders}
    if not any(listing.values()):
        if images:
            raise UhkdError(
                f"{folder} holds {pluralize(len(images), 'image')} but no class folders: "
                f"expected one folder for each class, {folder.name}/<class>/<image>"
            )
        raise UhkdError(
            f"no images found in {folder}: expected {folder.name}/<class>/<image>, "
            f"with files that end in {' '.join(sorted(EXTENSIONS))}"
        )
    if empty := [name for name, files in listing.items() if not files]:
        raise UhkdError(f"class folder without any image in {folder}: {listed(empty)}; add images or remove it")
    if images:
        notes.append(f"{pluralize(len(images), 'image')} directly in {folder}, outside the class folders: ignored")
    return listing


def _children(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the subfolders and the names of images, sorted, without hidden ones."""
    folders, images = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            folders.append(Path(entry.path))
        elif _is_image(entry.name):
            images.append(entry.name)
    return folders, images


def _images_below(folder: Path, root: Path) -> list[str]:
    """Return the images in a folder; links are followed, but no folder is read twice, and none above `folder`."""
    names: list[str] = []
    visited = {_identity(parent) for parent in folder.resolve().parents}
    for path, folders, files in os.walk(folder, followlinks=True):
        if (identity := _identity(path)) in visited:
            folders.clear()
            continue
        visited.add(identity)
        # sorted: which of several links is followed must not depend on the file system
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        prefix = Path(path).relative_to(root).as_posix()
        names += [f"{prefix}/{name}" for name in files if _is_image(name) and not _is_hidden(name)]
    return sorted(names)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS and "." in name


def _source(root: Path, listing: dict[str, list[str]], classes: tuple[str, ...]) -> FileSource:
    names = [name for label in classes for name in listing.get(label, ())]
    counts = [len(listing.get(label, ())) for label in classes]
    return FileSource(root, names, np.repeat(np.arange(len(classes)), counts))


def _without_bad_images(source: FileSource, folder: Path, notes: list[str], labelled: bool) -> FileSource:
    good = decodable(len(source), lambda i: decode_file(source.path(i)))
    if good.all():
        return source
    bad = [source.names[i] for i in np.flatnonzero(~good)]
    notes.append(f"{pluralize(len(bad), 'image')} in {folder} cannot be decoded: skipped ({listed(bad)})")
    if not labelled and not good.any():
        raise UhkdError(f"{folder} has no image that can be decoded: add images")
    for label in np.unique(source.labels[~good]) if labelled and source.labels is not None else ():
        members = np.flatnonzero(source.labels == label)
        if not good[members].any():
            name = Path(source.names[members[0]]).relative_to(folder.relative_to(source.root))
            raise UhkdError(f"class folder {folder / name.parts[0]} has no image that can be decoded: add images")
    labels = None if source.labels is None else source.labels[good]
    return FileSource(source.root, [source.names[i] for i in np.flatnonzero(good)], labels)
