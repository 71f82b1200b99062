"""`.npz` files and data sets of one's own."""

from typing import Any

import numpy as np
import torch
from PIL import Image

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


class Restless(Own):
    """Another image each time."""

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8)), index % 3


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
        "a data set of dicts",
        dataset({"image": PICTURE, "label": 1}),
        "items of the data set must be (image, label) pairs, found a dict of image, label: wrap the data set",
    ),
    Case(
        "a data set with text labels",
        dataset((PICTURE, "cat")),
        "labels of the data set must be integers, found str of shape (): number the classes from 0",
    ),
    Case(
        "a data set with one-hot labels",
        dataset((PICTURE, torch.eye(3)[0])),
        "labels of the data set must be integers, found Tensor of shape (3,): number the classes from 0",
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
        lambda: open_data(Restless(None)).notes[0],
        "the data set gives another image each time it is read: remove its random transforms (uhkd augments "
        "the images), else a run can be neither resumed nor repeated exactly",
        refused=False,
    ),
)
