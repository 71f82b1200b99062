"""`.npz` files and data sets of one's own."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

import uhkd
from references.errors.case import Case
from references.errors.shelf import FINETUNE, WORDS, write
from uhkd.data import open_data

TRAIN = f"{FINETUNE} --data set.npz"
IMAGES = np.zeros((12, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3


def npz(**changes: np.ndarray | None) -> None:
    """A whole file but for some arrays."""
    arrays = {"train_images": IMAGES, "train_labels": LABELS} | changes
    np.savez("set.npz", **{name: array for name, array in arrays.items() if array is not None})


class Own:
    """A data set that gives one and the same item."""

    def __init__(self, item: Any, count: int = 6) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


PICTURE = Image.new("RGB", (8, 8))


class Numbered(Own):
    """Labels 0, 1, 2, ... beside it."""

    def __getitem__(self, index: int) -> Any:
        return self.item, index % 3


class Gapped(Numbered):
    """None in place of its last item."""

    def __getitem__(self, index: int) -> Any:
        return None if index == 5 else super().__getitem__(index)


class Restless(Own):
    """Another image each time."""

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8)), index % 3


class Labelled(Own):
    """Labels as given."""

    def __init__(self, labels: list[Any], **attributes: Any) -> None:
        super().__init__(labels, len(labels))
        self.__dict__.update({name: list(values) for name, values in attributes.items()})

    def __getitem__(self, index: int) -> Any:
        return PICTURE, self.item[index]


def dataset(item: Any) -> Any:
    return lambda: open_data(Own(item))


def train(data: Any) -> Any:
    return uhkd.finetune(model="uhkd/resnet10", data=data, out="new", **WORDS)


CASES = (
    Case(
        "a text file named .npz",
        TRAIN,
        "set.npz is not a readable .npz file of plain arrays (it is no archive); write it with "
        "numpy.savez(file, train_images=..., train_labels=...)",
        make=lambda: write("set.npz", "hello"),
    ),
    Case(
        "an .npz without images",
        TRAIN,
        "set.npz lacks train_images: expected train_images and train_labels, found train_labels",
        make=lambda: npz(train_images=None),
    ),
    Case(
        "an .npz with float images",
        TRAIN,
        "set.npz: train_images must be uint8 of shape (N, height, width, 3) or (N, height, width, 1), found "
        "float64 of shape (12, 8, 8, 3)",
        make=lambda: npz(train_images=IMAGES / 255),
    ),
    Case(
        "an .npz with channels first",
        TRAIN,
        "set.npz: train_images must be uint8 of shape (N, height, width, 3) or (N, height, width, 1), found "
        "uint8 of shape (12, 3, 8, 8)",
        make=lambda: npz(train_images=IMAGES.transpose(0, 3, 1, 2)),
    ),
    Case(
        "an .npz with too few labels",
        TRAIN,
        "set.npz: train_labels must be integers of shape (12,), one for each image, found int64 of shape (11,)",
        make=lambda: npz(train_labels=LABELS[:-1]),
    ),
    Case(
        "an .npz with float labels",
        TRAIN,
        "set.npz: train_labels must be integers of shape (12,), one for each image, found float64 of shape (12,)",
        make=lambda: npz(train_labels=LABELS / 1),
    ),
    Case(
        "an .npz with a label below 0",
        TRAIN,
        "set: labels must count from 0, found -1",
        make=lambda: npz(train_labels=LABELS - 1),
    ),
    Case(
        "an .npz of pickled objects",
        TRAIN,
        "set.npz is not a readable .npz file of plain arrays (it holds pickled objects); write it with "
        "numpy.savez(file, train_images=..., train_labels=...)",
        make=lambda: npz(train_labels=np.array([{}] * 12)),
    ),
    Case(
        "an .npz with test images but no test labels",
        TRAIN,
        "set.npz holds only one of test_images and test_labels: expected both or none",
        make=lambda: npz(test_images=IMAGES),
    ),
    Case(
        "a data set without a length",
        lambda: open_data(iter([1])),
        "the data set must have __len__ and __getitem__ (map-style), found list_iterator",
    ),
    Case(
        "an empty data set", lambda: open_data(Own(PICTURE, 0)), "the data set is empty: expected (image, label) pairs"
    ),
    Case(
        "a data set of dicts with unusual keys",
        dataset({"image": PICTURE, "kind": 1, "site": 2}),
        "the data set has no columns with usual names of labels: choose one of kind, site with --label-column, or ignore "
        "the labels with --unlabelled",
    ),
    Case(
        "a data set with several labels for an image",
        dataset((PICTURE, torch.tensor([1, 0, 1]))),
        "the label of item 0 of the data set is a Tensor of shape (3,): multi-label data and probabilities are not "
        "supported, expected one class, as an integer, a name or a one-hot vector",
    ),
    Case(
        "a data set for detection",
        dataset((PICTURE, {"boxes": [], "labels": []})),
        "the label of item 0 of the data set is a dict with boxes, labels: expected one class, as an integer, a name or a "
        "one-hot vector",
    ),
    Case(
        "a data set with measured values",
        dataset((PICTURE, 0.25)),
        "item 0 of the data set has the label 0.25: expected a class, measured values are not supported",
    ),
    Case(
        "a data set with an item without label",
        lambda: open_data(Labelled([0, 1, None])),
        "item 2 of the data set has no label (None): remove it, or ignore all labels with --unlabelled",
    ),
    Case(
        "a data set with an item that is None",
        lambda: open_data(Gapped(PICTURE)),
        "item 5 of the data set is a NoneType: expected (image, label); remove it",
    ),
    Case(
        "an .npz with labels of shape (N, 1), as MedMNIST has them",
        lambda: (npz(train_labels=LABELS[:, None]), open_data("set.npz").classes)[1],
        "('0', '1', '2')",
        refused=False,
    ),
    Case(
        "a data set with names and numbers as labels",
        lambda: open_data(Labelled([0, 1, "cat"])),
        "labels of the data set have several forms: integers first, but names at item 2",
    ),
    Case(
        "a data set with a class that its class list lacks",
        lambda: open_data(Labelled(["cat", "dog", "cow"], classes=["cat", "dog"])),
        "the data set has classes that are not among those expected: cow; expected only: cat, dog",
    ),
    Case(
        "a data set with labels from 1 on",
        lambda: open_data(Labelled([1, 2, 3], classes=["ant", "bee", "cow"])),
        "Labelled: training labels go up to 3, but there are 3 classes (labels 0 to 2); number the classes from 0: "
        "subtract 1",
    ),
    Case(
        "a data set whose list of labels is in another order",
        lambda: open_data(Labelled([0, 1, 1, 0] * 5, targets=[0, 1] * 10)).notes[0],
        "labels of the data set are read from all 20 items, because those it lists differ from its items (item 2)",
        refused=False,
    ),
    Case(
        "concatenated data sets with different classes",
        lambda: open_data(ConcatDataset([Labelled([0, 1] * 5, targets=[0, 1] * 5, classes=c) for c in ("ab", "ac")])),
        "the concatenated data sets have different classes (a, b; a, c), so that a number means several classes: map "
        "their labels to common numbers with target_transform",
    ),
    Case(
        "validation images of a class without training images",
        lambda: open_data((Labelled(["cat", "dog"] * 3), Labelled(["cat", "cow"]))),
        "the validation data set has classes that are not among those expected: cow; expected only: cat, dog",
    ),
    Case(
        "a dict of data sets with another split",
        lambda: open_data({"train": Labelled([0, 1] * 3), "extra": Labelled([0, 1])}),
        "data given as a dict must have train and, optionally, val and test, found train, extra",
    ),
    Case(
        "a data set of normalised images",
        dataset((torch.full((3, 8, 8), -1.5), 1)),
        "item 0 of the data set cannot be read (image values must be floats in [0,1] or integers "
        "in 0..255, found float32 from -1.5 to -1.5: remove a normalising transform, because each network "
        "normalises its input)",
    ),
    Case(
        "a data set that raises an exception",
        dataset(KeyError("gone")),
        "item 0 of the data set cannot be read (KeyError: 'gone')",
    ),
    Case(
        "three data sets",
        lambda: open_data((Numbered(PICTURE),) * 3),
        "data given as a tuple must be (train, val), found 3 entries",
    ),
    Case(
        "training images with labels, validation images without",
        lambda: open_data((Numbered(PICTURE), Own(PICTURE))),
        "Numbered: one split has labels and another has none: expected all or none",
    ),
    Case(
        "finetune without labels",
        lambda: train(Own(PICTURE, 40)),
        "data Own has no labels, and finetune learns only from labels; expected class folders or (image, label) pairs, or "
        "distil a teacher, which needs none",
    ),
    Case(
        "a data set with random transforms",
        lambda: open_data(Restless(None)).notes[1],
        "the data set gives another image each time it is read: remove its random transforms (uhkd augments "
        "the images), else a run can be neither resumed nor repeated exactly",
        refused=False,
    ),
)
