"""Tables of images and labels."""

from collections.abc import Callable, Sequence

from references.errors.case import Case
from references.errors.shelf import FINETUNE, pictures, write

TRAIN = f"{FINETUNE} --data labels.csv"


def table(did: str, lines: Sequence[str], says: str, options: str = "", header: str = "image,label") -> Case:
    """A table beside eight images each of ant, bee and cat; `lines` are its last ones."""
    return Case(did, TRAIN + options, f"labels.csv{says}", make=written(lines, header))


def written(lines: Sequence[str], header: str = "image,label") -> Callable[[], None]:
    def make() -> None:
        pictures("images")
        extra = "," * (header.count(",") - 1)
        rows = [f"images/{name}/{i}.png,{name}{extra}" for name in ("ant", "bee", "cat") for i in range(8)]
        write("labels.csv", "\n".join([header, *rows, *lines]))

    return make


CASES = (
    table(
        "two columns of labels",
        [],
        " has several columns with usual names of labels: choose one of class, category with --label-column, or ignore the "
        "labels with --unlabelled",
        header="image,class,category",
    ),
    table(
        "a table without a line of column names",
        [],
        " has no columns with usual names of labels: choose one of ant with --label-column, or ignore the labels with "
        "--unlabelled",
        header="images/ant/0.png,ant",
    ),
    table(
        "a column that does not exist",
        [],
        " has no column lable: choose one of label with --label-column",
        options=" --label-column lable",
    ),
    Case(
        "a table with images that do not exist",
        TRAIN,
        "2 of 26 images in labels.csv do not exist (images/dog/0.png, images/dog/1.png): expected paths with endings, "
        "relative to .; --skip-bad-images leaves some out",
        make=written(["images/dog/0.png,dog", "images/dog/1.png,dog"]),
    ),
    table(
        "an empty cell", ["images/cat/9.png,"], ": column label is empty in 1 row (first: row 25): fill or remove them"
    ),
    table(
        "several labels in a cell",
        ["images/cat/9.png,ant|bee"],
        ": column label has several labels in row 25 (ant|bee): multi-label data is not supported, expected one class for "
        "each image",
    ),
    table(
        "an image with two labels",
        ["images/cat/7.png,ant"],
        ": rows 24 and 25 have the same image images/cat/7.png and different labels (multi-label data is not supported): "
        "cat and ant",
    ),
    table(
        "a row with too many cells",
        ["images/cat/7.png,ant,bee"],
        " has 2 column names (image, label), and 3 cells in row 25: expected different names, as many cells in each row, "
        "and quotes around cells with commas",
    ),
    table(
        "another word for a split",
        ["images/cat/7.png,cat,train"],
        ": column split has '' in row 1: expected train, val or test",
        header="image,label,split",
    ),
    Case(
        "measured values as labels",
        TRAIN,
        "labels.csv: column label has the label 0.5 in row 1: expected names or integers from 0 on; measured values are "
        "not supported",
        make=lambda: write("labels.csv", "image,label\na.png,0.5\nb.png,1.25"),
    ),
    Case(
        "a column for each class",
        TRAIN,
        "labels.csv: columns healthy, rust hold only 0 and 1, as one-hot or several labels: expected one column with the class "
        "of each image; for one of them alone: --label-column",
        make=lambda: write("labels.csv", "image,healthy,rust\na.png,0,1\nb.png,1,0"),
    ),
    Case(
        "an empty table",
        TRAIN,
        "labels.csv has no rows: expected a line of column names, then a row for each image",
        make=lambda: write("labels.csv", "image,label\n"),
    ),
    Case(
        "a table that is no text",
        TRAIN,
        "labels.csv cannot be read as a table (…): expected text in UTF-8",
        make=lambda: write("labels.csv", b"\xff\xfe\x00"),
    ),
    Case(
        "a table of other classes",
        "eval run --data labels.csv",
        "labels.csv has classes that are not among those expected: wasp; expected only: ant, bee, cat",
        has=("run", "images"),
        make=lambda: write("labels.csv", "image,label\nimages/ant/0.png,ant\nimages/bee/0.png,wasp"),
    ),
    Case(
        "a table for `eval` without a column of labels",
        "eval run --data labels.csv",
        "labels.csv has no columns with usual names of labels: choose one of kind with --label-column",
        has=("run", "images"),
        make=lambda: write("labels.csv", "image,kind\nimages/ant/0.png,ant"),
    ),
    Case(
        "a table of a comparison with columns of other names",
        "compare --pairs pair.yaml --methods kd --out new",
        "…/labels.csv has no columns with usual names of labels: choose one of kind with --label-column, or ignore the "
        "labels with --unlabelled; in compare, set options of a training by --overrides NAME=VALUE, or in the recipe of the "
        "pair",
        has=("teacher", "images"),
        make=lambda: (
            write("labels.csv", "image,kind\nimages/ant/0.png,ant"),
            write("pair.yaml", "teacher: teacher\nstudent: uhkd/vit_micro\ndata: labels.csv\n"),
        ),
    ),
    Case(
        "a column of no table",
        "eval run --label-column species",
        "label_column: needs data, and none is given (--data)",
        has=("run", "images"),
    ),
)
