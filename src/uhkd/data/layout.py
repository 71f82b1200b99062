"""Parts of an image folder: which folders hold the training, validation and test images."""

import itertools
import os
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from uhkd.console import listed
from uhkd.data.listing import children, has_images
from uhkd.data.names import PARTS
from uhkd.errors import UhkdError

_SPLITS = ("train", "val", "test")
_LIKE_PART = re.compile(r"(?:^|[^a-z])(train|val|test|dev|eval)(?:ing|id|idation|uation)?(?:set|s)?(?![a-z])")
_IMAGES = frozenset(("images", "image", "imgs", "img", "jpegimages"))
_ANNOTATIONS = re.compile(
    r"labels?|labeltxt|masks?|annotations?|annots|segmentation\w*|gt|ground_?truth|imagesets|xmls?"
)


@dataclass(frozen=True)
class ImageFolder:
    """An image folder; train, val, test: its parts, as paths below `root` or absolute ones. None: found by name."""

    root: Any
    train: str | None = None
    val: str | None = None
    test: str | None = None

    @classmethod
    def of(cls, recipe: Any, data: Any = None) -> Any:
        """Return the data of a recipe, or `data` in its place, as an `ImageFolder` if the recipe names parts."""
        get = recipe.get if isinstance(recipe, Mapping) else partial(getattr, recipe)
        data = get("data") if data is None else data
        parts = [get(f"{part}_dir") for part in _SPLITS]
        return cls(data, *parts) if any(parts) else data


def find_parts(data: ImageFolder, known: Collection[str], unlabelled: bool, notes: list[str]) -> dict[str, Path]:
    """Return the folder of each part; only "train" if the folder has no parts.

    Args:
        data: the folder, and the parts that are named.
        known: class names; folders with these names are classes.
        unlabelled: folders are no classes.
        notes: what was decided is appended.

    Raises:
        UhkdError: parts that are missing, overlap, exist twice or cannot be told from classes; labels that are not classes.
    """
    root = Path(data.root).expanduser()
    given = {part: _given(root, part, name) for part in _SPLITS if (name := getattr(data, part)) is not None}
    parts = _named_parts(root, given, known, unlabelled, notes)
    if not known and PARTS.get(root.name.lower()) == "train" and os.access(root.parent, os.R_OK):
        others = [folder for folder in children(root.parent)[0] if is_part(folder.name) and folder != root]
        if others := [folder for folder in others if folder not in parts.values()]:
            notes.append(f"not used: {listed(others)}; with --data {shlex.quote(str(root.parent))} they are")
    train = _inside(parts["train"], known, unlabelled, notes)
    classes = known or [folder.name for folder in children(train)[0]]
    inner = {"train": train}
    inner |= {part: _inside(parts[part], classes, unlabelled, notes) for part in ("val", "test") if part in parts}
    for (part, folder), (other, place) in itertools.permutations(inner.items(), 2):
        if place.resolve().is_relative_to(folder.resolve()):
            raise UhkdError(
                f"the {other} folder {place} is in the {part} folder {folder}, so that its images would be in both; name "
                "separate folders with --train-dir, --val-dir and --test-dir"
            )
    return inner


def _given(root: Path, part: str, name: str) -> Path:
    folder = root if name == "." else root / Path(name).expanduser()
    if not folder.is_dir():
        present = listed([child.name for child in children(root)[0]]) or "none"
        raise UhkdError(f"{part}_dir: no such folder: {folder}; folders in {root}: {present}")
    return folder


def _named_parts(
    root: Path, given: dict[str, Path], known: Collection[str], unlabelled: bool, notes: list[str]
) -> dict[str, Path]:
    """Return the parts that are given, and others by the names of folders in `root` and above the given training folder."""
    train = given.get("train")
    if train is None:
        bases = [_inside(root, known, unlabelled, notes)]
    elif train.resolve() == root.resolve():
        return given
    else:
        bases = [folder for folder in train.parents if folder.is_relative_to(root)] or [root]
    taken = [path.resolve() for path in given.values()]
    free = [folder for base in bases for folder in children(base)[0]]
    free = [folder for folder in free if not any(path.is_relative_to(folder.resolve()) for path in taken)]
    named: dict[str, Path] = {}
    for folder in free:
        part = PARTS.get(folder.name.lower())
        if part in named:
            raise UhkdError(
                f"{folder.parent} has two folders of {part} images, {named[part].name} and {folder.name}: choose one with "
                f"--{part}-dir, or merge them"
            )
        if part is not None and part not in given:
            named[part] = folder
    others = [folder.name for folder in free if folder not in named.values()]
    decisive = [named["train"]] if "train" in named else named.values()
    # names of parts can be classes, as train in CIFAR-100: then they hold images, and other class folders are next to them
    if named and others and train is None and all(children(folder)[1] for folder in decisive):
        if found := [folder.name for folder in named.values() if folder.name not in known]:
            notes.append(
                f"read as classes, because they hold images and are next to {listed(others, 3)}: {listed(found)}"
            )
        return given | {"train": bases[0]}
    parts = given | named
    if "train" in parts:
        if others:
            notes.append(f"folders next to {parts['train']} ignored: {listed(others)}")
        return parts
    present = [folder.name for folder in free]
    if named:
        raise UhkdError(
            f"{bases[0]} holds {listed(present)} but no train folder: expected train/<class>/<image>; name it with --train-dir, "
            f"or use --train-dir {relative(bases[0], root)} if all of them are classes"
        )
    if not {*present} <= {*known}:
        _refuse_splits(bases[0], present, root)
    return given | {"train": bases[0]}


def _refuse_splits(folder: Path, names: list[str], root: Path) -> None:
    """Raise UhkdError if folders are named like several splits: train2017 and val2017, training_set and test_set."""
    likely = {_like_part(name): relative(folder / name, root) for name in reversed(names)}
    other = next((part for part in ("val", "dev", "eval", "test") if part in likely), None)
    if "train" in likely and other is not None:
        flags = f"--train-dir {likely['train']} --{'test' if other == 'test' else 'val'}-dir {likely[other]}"
        raise UhkdError(
            f"the folders {listed(names)} in {folder} seem to be splits, not classes: name them, for example {flags}; if they "
            f"are the classes, use --train-dir {relative(folder, root)}"
        )


def relative(folder: Path, root: Path) -> str:
    """Return a folder as an option names it, below the root of the data."""
    return shlex.quote(os.path.relpath(folder, root))


def is_part(name: str) -> bool:
    """Return whether a folder's name is that of a split."""
    return name.lower() in PARTS


def _like_part(name: str) -> str | None:
    match = _LIKE_PART.search(re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return None if match is None else match[1]


def _inside(folder: Path, known: Collection[str], unlabelled: bool, notes: list[str]) -> Path:
    """Return the folder in a folder that holds nothing else, repeatedly; otherwise the folder itself."""
    inner, ignored = folder, []
    while (found := _wrapped(inner, known, unlabelled)) is not None:
        inner = found[0]
        ignored += found[1]
    if inner == folder or (unlabelled and not any(child.name.lower() in PARTS for child in children(inner)[0])):
        return folder  # without labels, images may be in any folder
    siblings = f"; folders next to it ignored: {listed(ignored)}" if ignored else ""
    notes.append(f"the images of {folder} are in {inner}{siblings}")
    return inner


def _wrapped(folder: Path, known: Collection[str], unlabelled: bool) -> tuple[Path, list[str]] | None:
    """Return the only folder of images in a folder, and the names of those next to it; None if there is no such."""
    folders, images = children(folder)
    others = [folder for folder in folders if not _ANNOTATIONS.fullmatch(folder.name.lower()) or has_images(folder)]
    inner = next(
        (folder for folder in folders if folder.name.lower() in _IMAGES), others[0] if len(others) == 1 else None
    )
    if images or inner is None or inner.name in known or inner.name.lower() in PARTS:
        return None
    below, direct = children(inner)
    siblings = [child for child in folders if child != inner]
    annotations = [child.name for child in siblings if _ANNOTATIONS.fullmatch(child.name.lower())]
    if any(child.name not in annotations and has_images(child) for child in siblings):
        return None
    splits = [child for child in below if _like_part(child.name)]
    if annotations and not unlabelled and not any(children(place)[0] for place in splits or [inner]):
        raise UhkdError(
            f"{folder} holds images in {inner.name} and {listed(annotations)} next to it: labels of detection and segmentation "
            "are not read; expected a folder of images for each class, or use the images alone with --unlabelled"
        )
    single_class = bool(direct) or not below
    return None if single_class and inner.name.lower() not in _IMAGES else (inner, [child.name for child in siblings])
