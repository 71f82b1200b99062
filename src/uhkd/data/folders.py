"""Image folders: class folders, in one folder or in the folders of training, validation and test images; or without labels."""

import shlex
from collections import Counter
from pathlib import Path

import numpy as np

from uhkd.console import listed, pluralize
from uhkd.data.datasets import RawSplits
from uhkd.data.decode import common_size, decodable, decode_file, max_pixels
from uhkd.data.duplicates import duplicates_note
from uhkd.data.formats import describe_other_files
from uhkd.data.labels import alike
from uhkd.data.layout import ImageFolder, find_parts, is_part, relative
from uhkd.data.listing import children, has_images, images_below
from uhkd.data.names import TABLES
from uhkd.data.sources import FileSource
from uhkd.errors import UhkdError

_HEADERS = 64  # files whose header is read to check whether all images have one size


def read_folder(
    data: ImageFolder, *, skip_bad_images: bool, class_names: tuple[str, ...] | None, unlabelled: bool = False
) -> RawSplits:
    """List the images of a folder; the classes are `class_names`, or the sorted names of the class folders.

    If the training images are in no subfolder, no split has labels.

    Args:
        data: the folder.
        skip_bad_images: decode every file once and leave out those that fail.
        class_names: names and order of the classes, for example of a trained model.
        unlabelled: ignore the meaning of folders, at any depth; the subfolders of a split only fix the order of its images
            and the strata from which a validation split is cut.

    Raises:
        UhkdError: no images, images without class folders, an empty class folder, classes in val or test that train (or
            class_names) does not have, a layout that is not clear, or an invalid UHKD_MAX_PIXELS.
    """
    max_pixels()  # reports an invalid value once, not for every image
    notes: list[str] = []
    other_files: Counter[str] = Counter()
    splits = find_parts(data, class_names or (), unlabelled, notes)
    root = Path(data.root).expanduser()
    roots = {split: root if folder.is_relative_to(root) else folder.parent for split, folder in splits.items()}
    if unlabelled or (class_names is None and _is_flat(splits["train"])):
        if not unlabelled:
            tables = sorted(file for file in root.iterdir() if file.suffix.lower() in TABLES)
            hint = f"; {tables[0].name} may have them: --data {shlex.quote(str(tables[0]))}" if tables else ""
            notes.append(f"no class folders in {splits['train']}: its images have no labels to learn from{hint}")
        classes: tuple[str, ...] = ()
        sources = {
            part: _source_without_classes(roots[part], place, unlabelled, other_files) for part, place in splits.items()
        }
    else:
        if data.test is None and "test" in splits and _is_flat(splits["test"]):
            notes.append(f"no class folders in {splits['test']}: its images have no labels, and are not used")
            del splits["test"]
        listings = {split: _list_classes(folder, roots[split], notes, other_files) for split, folder in splits.items()}
        if data.train is None and not set(listings["train"]) <= set(class_names or ()):
            _refuse_unclear(listings["train"], splits["train"], root)
        classes = class_names or tuple(sorted(listings["train"]))
        for split, listing in listings.items():
            if unknown := sorted(set(listing) - set(classes)):
                expected = "the classes expected here" if class_names else f"the classes of {splits['train']}"
                raise UhkdError(
                    f"{splits[split]} has class folders that are not among {expected}: {listed(unknown)}; "
                    f"expected only: {listed(classes)}{alike({*unknown, *classes}, '; ')}"
                )
        sources = {split: _source(roots[split], listing, classes) for split, listing in listings.items()}
    if other_files:
        notes.append(f"left aside, because they are not images: {describe_other_files(other_files)}")
    if skip_bad_images:
        sources = {
            part: _without_bad_images(source, splits[part], notes, bool(classes)) for part, source in sources.items()
        }
    train = sources["train"]
    for part in sorted(sources.keys() - {"train"}, reverse=True):
        notes += duplicates_note(train, sources[part], part)
    size = common_size(len(train), train.path, _HEADERS)
    return RawSplits(classes, train, sources.get("val"), sources.get("test"), size, tuple(notes))


def _is_flat(folder: Path) -> bool:
    """Return whether a folder contains images, and its subfolders none."""
    folders, images = children(folder)
    return bool(images) and not any(map(has_images, folders))


def _source_without_classes(root: Path, folder: Path, strata: bool, other_files: Counter[str]) -> FileSource:
    folders, images = children(folder, other_files)
    groups = [images_below(subfolder, root, other_files) for subfolder in folders]
    # images in no subfolder come last, so that the order of those in class folders is the same as with labels
    prefix = folder.relative_to(root)
    groups.append([(prefix / name).as_posix() for name in images])
    names = [name for group in groups for name in group]
    if not names:
        raise UhkdError(f"no images found in {folder}; other files: {describe_other_files(other_files) or 'none'}")
    return FileSource(root, names, np.repeat(np.arange(len(groups)), [len(g) for g in groups]) if strata else None)


def _list_classes(folder: Path, root: Path, notes: list[str], other_files: Counter[str]) -> dict[str, list[str]]:
    """Return class name -> sorted image paths below `root`."""
    class_folders, images = children(folder, other_files)
    listing = {class_folder.name: images_below(class_folder, root, other_files) for class_folder in class_folders}
    if not any(listing.values()):
        if images:
            raise UhkdError(
                f"{folder} holds {pluralize(len(images), 'image')} but no class folders: "
                f"expected one folder for each class, {folder.name}/<class>/<image>; sort them, or move this folder elsewhere"
            )
        raise UhkdError(
            f"no images found in {folder}: expected {folder.name}/<class>/<image>; "
            f"other files: {describe_other_files(other_files) or 'none'}"
        )
    if empty := [name for name, files in listing.items() if not files]:
        raise UhkdError(f"class folder without any image in {folder}: {listed(empty)}; add images or remove it")
    if images:
        notes.append(f"{pluralize(len(images), 'image')} directly in {folder}, outside the class folders: ignored")
    depth = len(folder.relative_to(root).parts) + 1  # slashes in the path of an image directly in a class folder
    nested = {name: count for name, files in listing.items() if (count := sum(f.count("/") > depth for f in files))}
    if nested:
        notes.append(
            f"{pluralize(sum(nested.values()), 'image')} in subfolders of class folders belong to the class "
            f"({pluralize(len(nested), 'class', 'classes')} of {folder}: {listed([*nested], 3)})"
        )
    return listing


def _refuse_unclear(listing: dict[str, list[str]], folder: Path, root: Path) -> None:
    """Raise UhkdError if most class folders have subfolders of the same names: these may be the classes, or splits."""
    below = {name: _subfolders(files, len(folder.relative_to(root).parts) + 1) for name, files in listing.items()}
    names = [name for name, subfolders in below.items() if subfolders]
    shared = sorted(set.intersection(*(below[name] for name in names))) if names else []
    if len(names) < 2 or 2 * len(names) <= len(listing) or not shared:
        return
    first, second = (relative(folder / name, root) for name in names[:2])
    splits = f"If {listed(names, 4)} are splits, name them, for example --train-dir {first} --val-dir {second}"
    if is_part(shared[0]):
        splits = "Splits in class folders are not read: expected train/<class>/<image>"
    raise UhkdError(
        f"the folders {listed(names, 4)} in {folder} all hold the folders {listed(shared, 4)}, so that it is not clear which of "
        f"them are classes. {splits}; if {listed(names, 4)} are the classes, use --train-dir {relative(folder, root)}, which "
        "adds the images of their subfolders to them"
    )


def _subfolders(files: list[str], depth: int) -> set[str]:
    """Return the names of the first folders at which the paths of a class part, below `depth` folders; "" is left out."""
    inner = [file.split("/", depth)[depth] for file in files]
    while len(heads := {file.partition("/")[0] if "/" in file else "" for file in inner}) == 1 and "" not in heads:
        inner = [file.partition("/")[2] for file in inner]
    return heads - {""}


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
