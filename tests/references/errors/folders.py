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


def aside() -> str:
    pictures("images")
    for name in ("ant/a.txt", "bee/b.TXT", "bee/c.heic"):
        write(f"images/{name}", "hello")
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
        "no images found in images: expected images/<class>/<image>; other files: none",
        make=lambda: Path("images").mkdir(),
    ),
    Case(
        "a folder of other files",
        TRAIN,
        "no images found in images: expected images/<class>/<image>; other files: 1 .zip",
        make=lambda: write("images/ant/0.zip", "hello"),
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
        "images holds test, val but no train folder: expected train/<class>/<image>; name it with --train-dir, or use "
        "--train-dir . "
        "if all of them are classes",
        make=lambda: parts(val=("ant", "bee"), test=("ant", "bee")),
    ),
    Case(
        "an empty val folder",
        TRAIN,
        "no images found in images/val: expected val/<class>/<image>; other files: none",
        make=lambda: (parts(train=("ant", "bee")), Path("images/val").mkdir()),
    ),
    Case(
        "a class in val that is missing in train",
        TRAIN,
        "images/val has class folders that are not among the classes of images/train: wasp; expected only: ant, bee",
        make=lambda: parts(train=("ant", "bee"), val=("bee", "wasp")),
    ),
    Case(
        "two folders of validation images",
        TRAIN,
        "images has two folders of val images, Val and valid: choose one with --val-dir, or merge them",
        make=lambda: parts(train=("ant", "bee"), Val=("ant", "bee"), valid=("ant", "bee")),
    ),
    Case(
        "splits of other names",
        TRAIN,
        "the folders test_set, training_set in images seem to be splits, not classes: name them, for example "
        "--train-dir training_set "
        "--test-dir test_set; if they are the classes, use --train-dir .",
        make=lambda: parts(training_set=("ant", "bee"), test_set=("ant", "bee")),
    ),
    Case(
        "folders that may be splits or classes",
        TRAIN,
        "the folders here, there in images all hold the folders ant, bee, so that it is not clear which of them are "
        "classes. If here, "
        "there are splits, name them, for example --train-dir here --val-dir there; if here, there are the classes, "
        "use --train-dir ., "
        "which adds the images of their subfolders to them",
        make=lambda: parts(here=("ant", "bee"), there=("ant", "bee")),
    ),
    Case(
        "splits in class folders",
        TRAIN,
        "the folders ant, bee in images all hold the folders train, val, so that it is not clear which of them are "
        "classes. Splits in "
        "class folders are not read: expected train/<class>/<image>; if ant, bee are the classes, use --train-dir ., "
        "which adds the "
        "images of their subfolders to them",
        make=lambda: parts(ant=("train", "val"), bee=("train", "val")),
    ),
    Case(
        "labels of detection",
        TRAIN,
        "images holds images in images and labels next to it: labels of detection and segmentation are not read; "
        "expected a folder of "
        "images for each class, or use the images alone with --unlabelled",
        make=lambda: (parts(images=("train", "val")), write("images/labels/train/0.txt", "0 0.5 0.5 1 1")),
    ),
    Case(
        "a folder of training images that does not exist",
        f"{TRAIN} --train-dir trian",
        "train_dir: no such folder: images/trian; folders in images: ant, bee, cat",
        make=lambda: pictures("images"),
    ),
    Case(
        "validation images among the training images",
        f"{TRAIN} --val-dir cat",
        "the val folder images/cat is in the train folder images, so that its images would be in both; name separate "
        "folders with "
        "--train-dir, --val-dir and --test-dir",
        make=lambda: pictures("images"),
    ),
    Case(
        "`--train-dir` for data that is no folder",
        f"{FINETUNE} --data digits --train-dir train",
        "train_dir, val_dir and test_dir name parts of an image folder, and data digits is none: leave them out",
    ),
    Case(
        "`--train-dir` in `eval` without `--data`",
        "eval run --train-dir train",
        "train_dir: needs data, and none is given (--data)",
        has=("run",),
    ),
    Case(
        "files that are no images",
        aside,
        "left aside, because they are not images: 2 .txt, 1 .heic (HEIC needs the package pillow-heif: pip install "
        "pillow-heif)",
        refused=False,
    ),
    Case(
        "a batch larger than the data",
        f"{TRAIN} --batch-size 64",
        "batch_size 64 is larger than the 18 images of the training split; use --batch-size 4, or another one up to 18",
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
    Case(
        "a class that val spells differently",
        TRAIN,
        "images/val has class folders that are not among the classes of images/train: Ant; expected only: ant, bee; Ant, ant "
        "differ only in case, spaces or Unicode form",
        make=lambda: parts(train=("ant", "bee"), val=("Ant", "bee")),
    ),
    Case(
        "two spellings of a class",
        lambda: (pictures("images", ("Ant", "ant", "bee")), open_data("images").notes[0])[1],
        "Ant, ant differ only in case, spaces or Unicode form: read as different classes",
        refused=False,
    ),
    Case(
        "the folder train as data, with a folder val next to it",
        lambda: (parts(train=("ant", "bee"), val=("ant",)), open_data("images/train").notes[0])[1],
        "not used: images/val; with --data images they are",
        refused=False,
    ),
    Case(
        "labels in a table next to images without class folders",
        lambda: (pictures("images", ("train",)), write("images/a.csv", "id,label"), open_data("images").notes[0])[2],
        "no class folders in images/train: its images have no labels to learn from; a.csv may have them: --data images/a.csv",
        refused=False,
    ),
    Case(
        "class folders deeper down, with folders of other files next to them",
        lambda: (pictures("images/Data/all"), write("images/Annotations/a.xml", ""), open_data("images").notes[0])[2],
        "the images of images are in images/Data/all; folders next to it ignored: Annotations",
        refused=False,
    ),
    Case(
        "a data set of torchvision by its bare name",
        f"{FINETUNE} --data cifar10",
        "data cifar10 does not exist; did you mean cifar100 or torch/cifar10?",
    ),
)
