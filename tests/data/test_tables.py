"""Labels from .csv, .tsv and .parquet tables, and Hugging Face data sets by column."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhkd.data import Columns, open_data
from uhkd.data.decode import from_pil

HEADER = "image,label"


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), number, np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    for number in range(24):
        picture(number).save(root / "images" / f"{number}.png")
    (root / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    return root


@pytest.fixture
def table(folder: Path, tmp_path: Path):
    """Write a table in the folder of the images: lines as given, or one for each image with the labels given."""

    def write(lines: list[str], name: str = "t.csv", encoding: str = "utf-8") -> Path:
        path = folder / name
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return path

    return write


def rows(labels: list[object], separator: str = ",") -> list[str]:
    return [f"images/{number}.png{separator}{label}" for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["cat", "ant", "bee"] * 8, ("ant", "bee", "cat")),
        ([10, 2, 1] * 8, ("1", "2", "10")),
        (["007", "10", "2"] * 8, ("007", "10", "2")),
        (["2.0", "10.0", "1.0"] * 8, ("1", "2", "10")),
        (['"tench, Tinca tinca"', "crane", '"red|blue"'] * 8, ("crane", "red|blue", "tench, Tinca tinca")),
    ],
    ids=["names", "integers", "leading zeros", "whole floats", "names with commas"],
)
def test_labels_and_their_order(table, labels, classes):
    data = open_data(table([HEADER, *rows(labels)]))
    assert data.name == "t" and data.classes == classes and (len(data.train), len(data.val)) == (18, 6)
    for number, label in enumerate(data.train.labels):
        shown = int(data.train.image(number)[0, 0, 0])
        assert classes[label] == str(labels[shown]).strip('"').removesuffix(".0")
    assert "t.csv: images from column image, labels from label" in data.notes


@pytest.mark.parametrize(
    ("name", "encoding", "separator"),
    [("t.csv", "utf-8-sig", ","), ("t.csv", "utf-8", ";"), ("t.tsv", "utf-8", "\t"), ("T.CSV", "utf-8", ", ")],
)
def test_separators_and_windows_files(table, name, encoding, separator):
    lines = [f"File Name{separator}Class", *rows(["a", "b"] * 12, separator), ""]
    data = open_data(table([line.replace("/", "\\") for line in lines], name, encoding))
    assert data.classes == ("a", "b") and len(data.train) + len(data.val) == 24


def test_a_column_of_splits(table):
    splits = ["Train"] * 12 + ["validation"] * 6 + ["test"] * 6
    lines = [f"{row},{split},x" for row, split in zip(rows(["a", "b"] * 12), splits, strict=True)]
    data = open_data(table([f"{HEADER},split,comment", *lines]))
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 6)
    assert data.test.image(5).equal(from_pil(picture(23))) and data.test.labels.tolist() == [0, 1] * 3
    assert "t.csv: images from column image, labels from label, splits from split; not used: comment" in data.notes
    folds = open_data(table([f"{HEADER},fold", *(f"{row},{n % 5}" for n, row in enumerate(rows(["a", "b"] * 12)))]))
    assert folds.test is None and "not used: fold" in folds.notes[0]


def test_columns_by_content_or_name(table):
    """A column of image files is found by its content, the ambiguous labels by option."""
    lines = ["where,label,class_name,photo_of", *(f"{row},{row[7]},me" for row in rows(["a", "b"] * 12))]
    with pytest.raises(
        ValueError, match=r"t.csv has several columns .*of label, class_name, photo_of with --label-column"
    ):
        open_data(table(lines))
    assert open_data(Columns(table(lines), label="label")).classes == ("a", "b")
    with pytest.raises(ValueError, match=r"t.csv has no column lable: choose one of label, class_name, photo_of"):
        open_data(Columns(str(table(lines)), label="lable"))
    both = ["mask,image,label", *(f"images/0.png,{row}" for row in rows(["a", "b"] * 12))]
    assert len({int(open_data(table(both)).train.image(i)[0, 0, 0]) for i in range(9)}) == 9


def test_rows_that_repeat_an_image(table):
    data = open_data(table([HEADER, *rows(["a", "b"] * 12), *rows(["a", "b"] * 3)]))
    assert len(data.train) + len(data.val) == 24
    assert any("6 rows with an image of an earlier row" in note for note in data.notes)


def test_missing_and_broken_files(table):
    lines = [HEADER, *rows(["a", "b"] * 12), "images/gone.png,a", "images/broken.png,b"]
    with pytest.raises(ValueError, match=r"1 of 26 images in .*t.csv do not exist \(images/gone.png\)"):
        open_data(table(lines))
    data = open_data(table(lines), skip_bad_images=True)
    assert len(data.train) + len(data.val) == 24
    assert any("2 images of t.csv cannot be decoded: skipped" in note and "gone" in note for note in data.notes)
    with pytest.raises(ValueError, match="2 of 2 images"):
        open_data(table([HEADER, "0.png,a", "1.png,b"]), skip_bad_images=True)


def test_absolute_paths_and_other_folders(table, folder, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([HEADER, *(f"{folder}/{row}" for row in rows(["a", "b"] * 12))]), encoding="utf-8")
    assert len(open_data(path).train) == 20


def test_a_table_without_labels(table):
    lines = ["path", *(row.split(",")[0] for row in rows([0] * 24))]
    with pytest.raises(ValueError, match=r"no columns with usual names of labels.*--unlabelled"):
        open_data(table(lines))
    assert open_data(table(lines), labels=False).train.labels is None


def test_classes_are_those_of_the_network(table):
    path = table([HEADER, *rows(["bee", "ant"] * 12)])
    assert open_data(path, class_names=["bee", "cow", "ant"]).classes == ("bee", "cow", "ant")
    with pytest.raises(ValueError, match="has classes that are not among those expected: ant; expected only: bee, cow"):
        open_data(path, class_names=["bee", "cow"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,label"], "has no rows"),
        ([], "has no rows"),
        ([HEADER, "images/0.png"], "2 column names .image, label., and 1 cell in row 1"),
        (["image,image", "a.png,b.png"], "expected different names"),
        ([HEADER, "images/0.png,a", "images/1.png,", ",b"], "column image is empty in 1 row .first: row 3."),
        ([HEADER, "images/0.png,a", "images/1.png,"], "column label is empty in 1 row .first: row 2."),
        ([HEADER, *rows(["a", "b", "a|b"])], r"several labels in row 3 \(a\|b\): multi-label"),
        ([HEADER, *rows(["c", "a; b", "b; d"])], "several labels in row 2"),
        ([HEADER, *rows(["\"['a', 'b']\""] * 4)], "several labels in row 1"),
        ([HEADER, *rows(["a", "b"]), "images/0.png,b"], "rows 1 and 3 have the same image images/0.png .*multi-label"),
        (["image,label,split", "images/0.png,a,train", "images/0.png,a,val"], "different splits: train and val"),
        (["image,label,split", "images/0.png,a,train", "images/1.png,a,dog"], "column split has 'dog' in row 2"),
        ([HEADER, *rows([0, 1, -1])], "the label -1 in row 3"),
        ([HEADER, *rows(["0.25", "0.5", "1.0"])], "the label 0.25 in row 1: .*measured values"),
        (["image,cat,dog", *rows(["1,0", "0,1"])], "columns cat, dog hold only 0 and 1, as one-hot or several labels"),
        (["images/0.png,cat", *rows(["dog"])], "no columns with usual names of labels: choose one of cat"),
    ],
)
def test_unsuitable_tables(table, lines, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_data(table(lines))
    assert "\n" not in str(raised.value)


def test_files_that_are_no_tables(folder):
    (folder / "t.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        open_data(folder / "t.csv")


def test_parquet(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = folder / "t.parquet"
    files = [row.split(",")[0] for row in rows([0] * 24)]
    parquet.write_table(
        pyarrow.table({"path": files, "label": [n % 3 for n in range(24)], "w": [0.5, None] * 12}), path
    )
    data = open_data(path)
    assert data.classes == ("0", "1", "2") and len(data.train) == 18
    parquet.write_table(pyarrow.table({"path": files, "label": [["a"], ["a", "b"]] * 12}), path)
    with pytest.raises(ValueError, match="several labels in row 1"):
        open_data(path)
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"", "path": ""}] * 4, "label": [0, 1] * 2}), path)
    with pytest.raises(ValueError, match=r"has images in it \(image\), not their paths: use --data hfds/"):
        open_data(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        open_data(path)


def test_parquet_without_pyarrow(folder, monkeypatch):
    (folder / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs the package pyarrow: pip install 'uhkd\[hf\]'"):
        open_data(folder / "t.parquet")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Write a data set of Hugging Face with columns as given; return its name for --data and the object."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def write(split: str = "train", **columns):
        features = {"img": datasets.Image()}
        for name, values in columns.items():
            classes = isinstance(values, dict)
            features[name] = (
                datasets.ClassLabel(names=values["names"])
                if classes
                else datasets.Value("string" if isinstance(values[0], str) else "int64")
            )
        values = {name: v["values"] if isinstance(v, dict) else v for name, v in columns.items()}
        count = len(next(iter(values.values())))
        rows = {"img": [picture(n) for n in range(count)], **values}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        (tmp_path / "set").mkdir(exist_ok=True)
        made.to_parquet(str(tmp_path / "set" / f"{split}-00000-of-00001.parquet"))
        return f"hfds/{tmp_path / 'set'}:{tmp_path / 'cache'}", made

    return write


ANIMALS = {"values": [0, 1] * 6, "names": ["owl", "ant"]}


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        ({"fine_label": ANIMALS}, ("owl", "ant")),
        ({"label": ["owl", "ant"] * 6}, ("ant", "owl")),
        ({"target": [0, 1] * 6, "number": [5, 6] * 6}, ("0", "1")),
    ],
    ids=["type", "text", "name"],
)
@pytest.mark.parametrize("as_object", [False, True], ids=["hfds", "object"])
def test_hugging_face_columns(hub, columns, classes, as_object):
    word, made = hub(**columns)
    data = open_data(made.with_format("torch") if as_object else word)
    assert data.classes == classes and len(data.train) + len(data.val) == 12
    for number, label in enumerate(data.train.labels):
        shown = int(data.train.image(number)[0, 0, 0])
        assert label == (1 - shown % 2 if classes == ("ant", "owl") else shown % 2)
    assert any("images from column img" in note for note in data.notes)


@pytest.mark.parametrize("as_object", [False, True], ids=["hfds", "object"])
def test_ambiguous_hugging_face_columns(hub, as_object):
    word, made = hub(fine_label=ANIMALS, coarse_label=ANIMALS)
    source = made if as_object else word
    with pytest.raises(
        ValueError, match=r"several columns .*: choose one of fine_label, coarse_label with --label-column"
    ):
        open_data(source)
    assert open_data(Columns(source, label="coarse_label")).classes == ("owl", "ant")
    assert open_data(source, labels=False).train.labels is None


def test_hugging_face_splits_have_the_classes_of_train(hub):
    _, train = hub(label=["owl", "ant", "cow"] * 4)
    word, test = hub("test", label=["owl", "cow"] * 2)
    for data in (open_data(word), open_data({"train": train, "test": test})):
        assert data.classes == ("ant", "cow", "owl") and data.test.labels.tolist() == [2, 1] * 2


def test_hugging_face_test_split_without_labels(hub):
    hub(label=ANIMALS)
    word, _ = hub("test", label={"values": [None] * 4, "names": ["owl", "ant"]})
    data = open_data(word)
    assert data.test is None and any("split test has no labels" in note for note in data.notes)


@pytest.mark.parametrize("as_object", [False, True], ids=["hfds", "object"])
def test_hugging_face_columns_that_cannot_be_used(hub, as_object):
    word, made = hub(label=["owl", None] * 6, number=[1] * 12)
    source = made if as_object else word
    with pytest.raises(
        ValueError, match=r"column number has neither images .* type is Value.*: .* with --image-column"
    ):
        open_data(Columns(source, image="number"))
    with pytest.raises(ValueError, match=r"item 1 of .* has no label \(None\): remove it, or .* --unlabelled"):
        open_data(source)
