"""Image folders and named data sets."""

import shutil
from pathlib import Path

from references.errors.case import Case
from references.errors.shelf import DIGITS, FINETUNE, pictures, write
from uhkd.data import open_data

TRAIN = f"{FINETUNE} --data images"


def parts(**classes: tuple[str, ...]) -> None:
    """images/PART/CLASS/*.png"""
    for part, names in classes.items():
        pictures(f"images/{part}", names)


def stray() -> str:
    pictures("images")
    shutil.copy("images/ant/0.png", "images/cover.png")
    return open_data("images").notes[0]


def beside() -> str:
    parts(train=("ant", "bee"), drafts=("ant",))
    return open_data("images").notes[0]


def damaged_cifar() -> None:
    write("cifar-100-python/train", "hello")


CASES = (
    Case(
        "a folder that does not exist",
        TRAIN,
        "data images does not exist; did you mean image?",
        make=lambda: pictures("image"),
    ),
    Case(
        "a misspelt name of a built-in data set",
        f"{FINETUNE} --data digit",
        "data digit does not exist; did you mean digits?",
    ),
    Case(
        "an empty folder",
        TRAIN,
        "no images found in images: expected images/<class>/<image>, with files that end in bmp gif jpeg jpg "
        "pgm png ppm tif tiff webp",
        make=lambda: Path("images").mkdir(),
    ),
    Case(
        "a folder of other files",
        TRAIN,
        "no images found in images: expected images/<class>/<image>, with files that end in bmp gif jpeg jpg "
        "pgm png ppm tif tiff webp",
        make=lambda: write("images/ant/0.heic", "hello"),
    ),
    Case(
        "a file instead of a folder",
        f"{FINETUNE} --data images.zip",
        "images.zip is a file: expected a folder of class folders, .tar shards, an .npz file, a table (.csv .tsv "
        ".parquet), digits or cifar100",
        make=lambda: write("images.zip", "hello"),
    ),
    Case(
        "images without class folders",
        f"{FINETUNE} --data images/ant",
        "data ant has no labels, and finetune learns only from labels; expected class folders or (image, label) pairs, or "
        "distil a teacher, which needs none",
        make=lambda: pictures("images", count=20),
    ),
    Case(
        "a class folder without images",
        TRAIN,
        "class folder without any image in images: wasp; add images or remove it",
        make=lambda: (pictures("images"), Path("images/wasp").mkdir()),
    ),
    Case(
        "a single class",
        TRAIN,
        "images has only one class with training images (ant): expected two or more (images without classes: --unlabelled)",
        make=lambda: pictures("images", ("ant",)),
    ),
    Case(
        "one image per class, and no val folder",
        TRAIN,
        "images: too few images to take a validation split, only 1 in ant, bee, cat: expected at least 2 in "
        "each class; add images or provide a validation split (val/ folder)",
        make=lambda: pictures("images", count=1),
    ),
    Case(
        "a val folder without a train folder",
        TRAIN,
        "images holds test, val but no train folder: expected train/<class>/<image>",
        make=lambda: parts(val=("ant", "bee"), test=("ant", "bee")),
    ),
    Case(
        "an empty val folder",
        TRAIN,
        "no images found in images/val: expected val/<class>/<image>, with files that end in bmp gif jpeg jpg"
        " pgm png ppm tif tiff webp",
        make=lambda: (parts(train=("ant", "bee")), Path("images/val").mkdir()),
    ),
    Case(
        "a class in val that is missing in train",
        TRAIN,
        "images/val has class folders that are not among the classes of images/train: wasp; expected only: ant, bee",
        make=lambda: parts(train=("ant", "bee"), val=("bee", "wasp")),
    ),
    Case(
        "a batch larger than the data",
        f"{TRAIN} --batch-size 64",
        "batch_size 64 is larger than the 21 images of the training split; use --batch-size 5, or another one up to 21",
        make=lambda: pictures("images"),
    ),
    Case(
        "gradient accumulation with one image per part",
        f"{TRAIN} --grad-accum-steps 8",
        "batch_size 8 in 8 parts leaves 1 image a part; batch statistics need at least 2",
        make=lambda: pictures("images"),
    ),
    Case(
        "fewer images than classes",
        f"{TRAIN} --train-limit 2",
        "train_limit 2 is too small: expected at least 3, one image for each class",
        make=lambda: pictures("images"),
    ),
    Case(
        "a validation fraction of 0",
        f"{FINETUNE} {DIGITS} --val-fraction 0",
        "val_fraction: expected a value > 0, found '0'",
    ),
    Case(
        "CIFAR-100 in another folder",
        f"{FINETUNE} --data cifar100:here",
        "CIFAR-100 not found: expected the folder here/cifar-100-python; unpack the data set's python version"
        " and give cifar100:ROOT, where ROOT is the folder that contains cifar-100-python",
    ),
    Case(
        "damaged CIFAR-100 files",
        f"{FINETUNE} --data cifar100:.",
        "CIFAR-100 in cifar-100-python is incomplete or damaged (checksums differ): unpack it again",
        make=damaged_cifar,
    ),
    Case(
        "an image next to the class folders",
        stray,
        "1 image directly in images, outside the class folders: ignored",
        refused=False,
    ),
    Case("a folder next to train and val", beside, "folders next to images/train ignored: drafts", refused=False),
)
