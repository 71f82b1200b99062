"""`open_data`: a name, path or data set -> classes and a training, validation and test split."""

import hashlib
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from uhkd.console import listed
from uhkd.data.columns import Columns
from uhkd.data.datasets import RawSplits, cifar100, digits, npz
from uhkd.data.folders import read_folder
from uhkd.data.labels import alike
from uhkd.data.labels import class_names as names_of
from uhkd.data.layout import ImageFolder
from uhkd.data.memory_cache import cache_in_memory
from uhkd.data.named_datasets import read_named
from uhkd.data.names import TABLES, check_data_name, is_reader
from uhkd.data.sources import DatasetSource, ImageSource, Split, fingerprint, relabelled
from uhkd.data.splits import check_fraction, default_fraction, stratified_split, stratified_subset
from uhkd.data.tables import read_table
from uhkd.data.tar_headers import refuse_packed
from uhkd.data.tar_source import ShardOptions, ShardSource, is_sharded, read_shards
from uhkd.data.user_datasets import by_name, user_datasets
from uhkd.errors import UhkdError
from uhkd.recipe import Resize

_DARK = 32  # highest value of nearly black images: an eighth of the range
_MAX_CLASSES = 10**6  # without names: each class gets one, and a single label can be any number


@dataclass(frozen=True)
class DataSplits:
    """A data set, ready for training.

    Attributes:
        name: of the data set.
        classes: names; empty without labels, and then the sources have none either.
        train, val, test: the images; test may be None.
        native_size: (H, W) if all images checked have one size, else None.
        flip: whether mirrored images keep their meaning.
        notes: what was decided or skipped, to be logged.
        fingerprint: hash of the images, the labels and the split.
        resize: how images get the shape of a network's input.
        val_fraction: share of the training images that val was cut from; None: the data has a validation split.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSource
    val: ImageSource
    test: ImageSource | None
    native_size: tuple[int, int] | None
    flip: bool
    notes: tuple[str, ...]
    fingerprint: str
    resize: Resize = "crop"
    val_fraction: float | None = None

    @property
    def validation(self) -> str:
        """Fingerprint of the validation split alone."""
        return fingerprint(self.val)


def open_data(
    data: Any,
    *,
    val_fraction: float | None = None,
    split_seed: int = 0,
    train_limit: int | None = None,
    skip_bad_images: bool = False,
    class_names: Sequence[str] | None = None,
    shards: ShardOptions | None = None,
    labels: bool = True,
) -> DataSplits:
    """Open "digits", "cifar100[:ROOT]", an image folder, tar shards, an .npz file, a table, or map-style data sets.

    Args:
        data: one of these; an `ImageFolder`, which names its parts; a data set, a (train, val) pair or a dict of them by part;
            `Columns` of one of these.
        val_fraction: share of the training images for validation, stratified, if there is no validation split; None: a tenth, at
            least 100 images but at most a fifth.
        split_seed: seed of that split, and of train_limit.
        train_limit: size of a stratified subset of the remaining training images.
        skip_bad_images: decode every file once and leave out those that fail.
        class_names: names and order of the classes, those of a trained model; a class may then have one image, and there may be
            images of one class only.
        shards: how tar shards are read.
        labels: False removes the labels after the splits are made, so that the splits are the same as with labels; in an image
            folder, images may then be in any subfolders.

    Raises:
        UhkdError: data that cannot be used; the message states what was expected and found.
    """
    check_fraction(val_fraction)
    names = None if class_names is None else tuple(class_names)
    columns = data if isinstance(data, Columns) else Columns(data)
    name, splits = _read(columns, skip_bad_images, names, shards or ShardOptions(), labels)
    splits, matched = _match_names(name, splits, names) if labels else (splits, [])
    classes, notes = _resolve_classes(name, splits, names) if labels else ((), ["labels ignored (unlabelled)"])
    if shards is not None and shards.at_a_time and not isinstance(splits.train, ShardSource):
        notes.append("shuffle_shards is not used: the data is not in tar shards")
    if (columns.image or columns.label) and not splits.by_columns:
        notes.append("image_column and label_column are not used: the data is no table and its items are no dicts")
    notes += _dark_note(splits.train)
    splits = cache_in_memory(splits)
    train, val = splits.train, splits.val
    share = None
    if val is None:
        share = default_fraction(len(train)) if val_fraction is None else val_fraction
        train, val = _split(name, train, classes, share, split_seed, labels and names is None)
        notes.append(f"validation split: {len(val)} images taken from the training images (seed {split_seed})")
    if train_limit is not None:
        train, note = _limit(train, train_limit, split_seed, labels)
        notes.append(note)
    test = splits.test
    if not labels:
        train, val = relabelled(train, None), relabelled(val, None)
        test = None if test is None else relabelled(test, None)
    listing = "\n".join([*classes, *(fingerprint(source) for source in (train, val, test))])
    return DataSplits(
        name=name,
        classes=classes,
        train=train,
        val=val,
        test=test,
        native_size=splits.native_size,
        flip=name != "digits",
        notes=(*splits.notes, *matched, *notes),
        fingerprint=hashlib.blake2b(listing.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest(),
        val_fraction=share,
    )


def _read(
    columns: Columns, skip_bad_images: bool, names: tuple[str, ...] | None, shards: ShardOptions, labels: bool
) -> tuple[str, RawSplits]:
    data = columns.data
    if isinstance(data, ImageFolder):
        named = isinstance(data.root, str | Path)
        if not named or not Path(data.root).expanduser().is_dir():
            check_data_name(str(data.root) if named else "digits")
            title = data.root if named else f"of type {type(data.root).__name__}"
            raise UhkdError(
                f"train_dir, val_dir and test_dir name parts of an image folder, and data {title} is none: leave them out"
            )
        path = Path(data.root).expanduser()
        folder = read_folder(data, skip_bad_images=skip_bad_images, class_names=names, unlabelled=not labels)
        return path.resolve().name, folder
    if not isinstance(data, str | Path):
        return user_datasets(columns, labels)
    name = str(data)
    if name == "digits":
        return name, digits()
    if name == "cifar100" or name.startswith("cifar100:"):
        root = name.partition(":")[2]
        return "cifar100", cifar100(Path(root).expanduser() if root else None)
    if is_sharded(name):
        return read_shards(name, shards, class_names=names, skip_bad_images=skip_bad_images)
    if is_reader(name):
        return name, read_named(columns, labels)
    check_data_name(name)
    path = Path(data).expanduser()
    refuse_packed(path)
    if path.suffix.lower() in TABLES and path.is_file():
        columns = replace(columns, data=path)
        return path.stem, read_table(columns, skip_bad_images=skip_bad_images, class_names=names, labels=labels)
    if path.is_dir():
        return _read(Columns(ImageFolder(path)), skip_bad_images, names, shards, labels)
    if path.suffix.lower() == ".npz":
        return path.stem, npz(path)
    raise UhkdError(
        f"{path} is a file: expected a folder of class folders, .tar shards, an .npz file, a table ({' '.join(TABLES)}), "
        "digits or cifar100"
    )


def _match_names(name: str, splits: RawSplits, names: tuple[str, ...] | None) -> tuple[RawSplits, list[str]]:
    """Return the splits with their classes numbered as in `names`, where all of them are among these, and a note."""
    if not names or not splits.classes or names == splits.classes:
        return splits, []
    wrapped = isinstance(splits.train, DatasetSource) and not names_of(splits.train.dataset)
    if wrapped and names == tuple(map(str, range(len(splits.classes)))):
        # networks trained on a Subset before its class names were read from the data set in it
        return replace(splits, classes=names), ["the classes of the network have no names: matched by number"]
    if not {*splits.classes} <= {*names}:
        return splits, []
    sources = {"train": splits.train, "val": splits.val, "test": splits.test}
    matched = {split: by_name(source, splits.classes, names, name) for split, source in sources.items() if source}
    notes = [note for _, added in matched.values() for note in added]
    return replace(splits, classes=names, **{split: source for split, (source, _) in matched.items()}), notes[:1]


def _resolve_classes(name: str, splits: RawSplits, names: tuple[str, ...] | None) -> tuple[tuple[str, ...], list[str]]:
    sources = {"training": splits.train, "validation": splits.val, "test": splits.test}
    labels = {split: source.labels for split, source in sources.items() if source is not None}
    train = labels["training"]
    if any((other is None) != (train is None) for other in labels.values()):
        raise UhkdError(f"{name}: one split has labels and another has none: expected all or none")
    if train is None:
        return (), ["no labels found: only label-free training is possible"]
    lowest = min(int(values.min()) for values in labels.values() if values is not None and len(values))
    if lowest < 0:
        raise UhkdError(f"{name}: labels must count from 0, found {lowest}")
    if names and splits.classes and names != splits.classes:
        pairs = itertools.zip_longest(names, splits.classes, fillvalue="nothing")
        expected, actual = next(pair for pair in pairs if pair[0] != pair[1])
        raise UhkdError(
            f"{name}: its classes are not those of the network ({actual!r} where {expected!r} was expected)"
        )
    if not (names or splits.classes) and (highest := int(train.max())) >= _MAX_CLASSES:
        raise UhkdError(
            f"{name}: labels number the classes from 0, found {highest}: expected less than {_MAX_CLASSES:,}; renumber them"
        )
    classes = names or splits.classes or tuple(str(i) for i in range(int(train.max()) + 1))
    if len(set(classes)) != len(classes):
        raise UhkdError(f"{name}: class names must differ, found repeated ones among {len(classes)}")
    for split, values in labels.items():
        highest = int(values.max(initial=0)) if values is not None else 0
        if highest >= len(classes):
            hint = "; number the classes from 0: subtract 1" if lowest == 1 and highest == len(classes) else ""
            raise UhkdError(
                f"{name}: {split} labels go up to {highest}, but there are {len(classes)} classes (labels 0 to "
                f"{len(classes) - 1}){hint}"
            )
    notes = [f"{similar}: read as different classes"] if (similar := alike(classes)) else []
    present = np.unique(train)
    if len(present) < 2 and not names:
        raise UhkdError(
            f"{name} has only one class with training images ({classes[int(present[0])]}): expected two or more "
            "(images without classes: --unlabelled)"
        )
    absent = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), present)]
    notes += [f"classes without training images ({len(absent)}): {listed(absent)}"] if absent else []
    if lowest > 0 and not (names or splits.classes):
        notes.append(
            f"labels start at {lowest}: if your classes are numbered from {lowest}, subtract {lowest} from the labels"
        )
    validation = labels.get("validation")
    if validation is not None and len(seen := np.unique(validation)) < len(present):
        only = f" ({classes[int(seen[0])]}): its accuracy is that of one class alone" if len(seen) == 1 else ""
        notes.append(f"validation images of only {len(seen)} of {len(present)} classes{only}")
    return tuple(classes), notes


def _dark_note(source: ImageSource, count: int = 4) -> list[str]:
    """Return a note if some images, spread over a source that is not in shards, use a small part of the range of values."""
    highest, positions = 255, [] if isinstance(source, ShardSource) else np.linspace(0, len(source) - 1, count)
    with suppress(UhkdError):  # reported when the image is used
        highest = max((int(source.image(int(i)).max()) for i in positions), default=highest)
    note = (
        f"{count} sampled images are nearly black (values up to {highest} of 255): scale them to the whole range, for example "
        "if files of 16 bits use only 12, or if values were divided by 255 twice"
    )
    return [note] if highest < _DARK else []


def _strata(source: ImageSource, labelled: bool) -> np.ndarray:
    """Return the labels, to stratify a split; 0 for all images without labels.

    If the labels are to be ignored (not labelled), also 0 where some are negative or a class has only one image.
    """
    labels = source.labels
    if labels is None or not (labelled or (labels.min() >= 0 and 1 not in np.unique(labels, return_counts=True)[1])):
        return np.zeros(len(source), dtype=np.int64)
    return labels


def _split(
    name: str, train: ImageSource, classes: tuple[str, ...], val_fraction: float, split_seed: int, labelled: bool
) -> tuple[ImageSource, ImageSource]:
    labels = _strata(train, labelled)
    single = [classes[i] if classes else name for i in np.flatnonzero(np.bincount(labels) == 1)]
    if single:
        raise UhkdError(
            f"{name}: too few images to take a validation split, only 1 in {listed(single)}: "
            "expected at least 2 in each class; add images or provide a validation split (val/ folder)"
            f"{alike(classes, '; ')}"
        )
    train_indices, val_indices = stratified_split(labels, val_fraction, split_seed)
    return Split(train, train_indices), Split(train, val_indices)


def _limit(train: ImageSource, limit: int, split_seed: int, labelled: bool) -> tuple[ImageSource, str]:
    if limit >= len(train):
        return train, f"train_limit {limit}: all {len(train)} training images are used"
    labels = _strata(train, labelled)
    classes = len(np.unique(labels))
    if limit < classes and not labelled:
        labels, classes = np.zeros_like(labels), 1
    if limit < classes:
        raise UhkdError(f"train_limit {limit} is too small: expected at least {classes}, one image for each class")
    chosen = stratified_subset(labels, limit, split_seed)
    return Split(train, chosen), f"training split limited to {limit} of {len(train)} images (seed {split_seed})"
