"""Tables of images: .csv, .tsv or .parquet with a column of paths, one of labels and, optionally, one of splits."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from uhkd.console import listed, pluralize
from uhkd.data.columns import Columns, columns_note
from uhkd.data.datasets import RawSplits
from uhkd.data.decode import common_size, decodable, decode_file
from uhkd.data.formats import is_image_name
from uhkd.data.labels import number_names
from uhkd.data.names import PARTS
from uhkd.data.sources import FileSource
from uhkd.errors import UhkdError

_SPLIT_COLUMNS = ("split", "set", "subset", "part", "partition", "fold", "phase")
_SAMPLED = 16  # cells of a column that show whether it has paths of images
_HEADERS = 64  # files whose header is read to check whether all images have one size


def read_table(
    columns: Columns, *, skip_bad_images: bool, class_names: Sequence[str] | None, labels: bool
) -> RawSplits:
    """Return the images of a table by split: of a column split or the like, otherwise all for training.

    Paths are relative to the table's folder. Classes are sorted names, or integers in their order.

    Args:
        columns: the path of the table, and the names of its columns.
        skip_bad_images: leave out files that do not exist or cannot be decoded.
        class_names: names and order of the classes, for example of a trained model.
        labels: whether labels are needed.

    Raises:
        UhkdError: an unreadable table, columns that cannot be found, missing files or labels, several labels for one image.
    """
    path = columns.data
    cells = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not any(cells.values()):
        raise UhkdError(f"{path} has no rows: expected a line of column names, then a row for each image")
    paths, binary = [], []
    for name, values in cells.items():
        (paths if _has_paths(values) else binary if {*values} in ({"0", "1"}, {"0.0", "1.0"}) else []).append(name)
    image, label = columns.find([*cells], paths, [], labels and len(binary) < 2)
    if labels and label is None:
        raise UhkdError(
            f"{path}: columns {listed(binary)} hold only 0 and 1, as one-hot or several labels: expected one column with the "
            "class of each image; for one of them alone: --label-column"
        )
    files = _filled(path, image, [value.replace("\\", "/") for value in cells[image]])
    splits, by = _splits(path, cells)
    texts, notes = _texts(path, label, cells[label]) if label else ([""] * len(files), [])
    note = columns_note(path.name, image, label) + (f", splits from {by}" if by else "")
    if unused := [name for name in cells if name not in (image, label, by)]:
        note += f"; not used: {listed(unused)}"
    notes = [note, *notes]
    rows, repeated = _distinct(path, files, splits, texts)
    if repeated:
        notes.append(
            f"{path.name}: {pluralize(repeated, 'row')} with an image of an earlier row, and the same label: ignored"
        )
    rows = _readable(path, files, rows, skip_bad_images, notes)
    classes, numbers = (), None
    if label:
        integers = all(re.fullmatch(r"0|[1-9]\d*", text) for text in texts)
        classes = tuple(class_names or sorted({*texts}, key=int if integers else str))
        numbers = number_names(texts, str(path), classes)
    sources: dict[str, FileSource] = {}
    for split in dict.fromkeys(splits):
        of_split = [row for row in rows if splits[row] == split]
        names = [files[row] for row in of_split]
        sources[split] = FileSource(path.parent, names, None if numbers is None else numbers[of_split])
    train = sources.get("train")
    if not train:
        raise UhkdError(f"{path} has no training images: expected rows with train in column {by}")
    size = common_size(len(train), train.path, _HEADERS)
    return RawSplits(classes, train, sources.get("val"), sources.get("test"), size, tuple(notes), by_columns=True)


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            # spreadsheets write semicolons where the comma is the decimal point
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
            rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter) if any(row)]
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8
        raise UhkdError(f"{path} cannot be read as a table ({error}): expected text in UTF-8") from error
    names = rows[0] if rows else []
    for number, row in enumerate(rows):
        if len(row) != len(names) or len({*names}) < len(names):
            raise UhkdError(
                f"{path} has {len(names)} column names ({listed(names)}), and {pluralize(len(row), 'cell')} in row {number}: "
                "expected different names, as many cells in each row, and quotes around cells with commas"
            )
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UhkdError(
            f"{path} needs the package pyarrow: pip install 'uhkd[hf]', or write the table as .csv"
        ) from error
    try:
        if stored := [field.name for field in parquet.read_schema(path) if pyarrow.types.is_struct(field.type)]:
            raise UhkdError(
                f"{path} has images in it ({listed(stored)}), not their paths: use --data hfds/{path.parent}"
            )
        cells = parquet.read_table(path).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise UhkdError(f"{path} cannot be read as a Parquet file ({error})") from error
    return {name: ["" if v is None or v != v else str(v).strip() for v in values] for name, values in cells.items()}


def _has_paths(values: Sequence[str]) -> bool:
    return all(map(is_image_name, values[:_SAMPLED]))


def _filled(path: Path, column: str, values: list[str]) -> list[str]:
    if empty := [row for row, value in enumerate(values, 1) if value == ""]:
        rows = pluralize(len(empty), "row")
        raise UhkdError(f"{path}: column {column} is empty in {rows} (first: row {empty[0]}): fill or remove them")
    return values


def _splits(path: Path, cells: dict[str, list[str]]) -> tuple[list[str], str | None]:
    """Return train, val or test for each row, and the column that has it: one with a usual name, and train in it."""
    for name, values in cells.items():
        found = [PARTS.get(value.lower()) for value in values]
        if name.lower() in _SPLIT_COLUMNS and "train" in found:
            if None in found:
                row = found.index(None)
                raise UhkdError(
                    f"{path}: column {name} has {values[row]!r} in row {row + 1}: expected train, val or test"
                )
            return [str(split) for split in found], name
    return ["train"] * len(next(iter(cells.values()))), None


def _texts(path: Path, column: str, values: list[str]) -> tuple[list[str], list[str]]:
    """Return the name of each row's class, and notes; whole numbers with a decimal point become integers.

    Raises:
        UhkdError: empty cells, several labels in one cell, negative numbers or numbers with a fraction.
    """
    distinct: dict[str, int] = {}
    for row, value in enumerate(_filled(path, column, values), 1):
        distinct.setdefault(value, row)
    parts = {value: {*re.split(r"\s*[|;]\s*", value)} for value in distinct}
    uses = Counter(chain.from_iterable(parts.values()))
    for value, row in distinct.items():
        if value.startswith("[") or (len(parts[value]) > 1 and max(uses[part] for part in parts[value]) > 1):
            raise UhkdError(
                f"{path}: column {column} has several labels in row {row} ({value}): multi-label data is not supported, "
                "expected one class for each image"
            )
    numeric = all(re.fullmatch(r"-?\d+(\.\d*)?", value) for value in distinct)
    wrong = [value for value in distinct if numeric and (value.startswith("-") or not float(value).is_integer())]
    if wrong:
        raise UhkdError(
            f"{path}: column {column} has the label {wrong[0]} in row {distinct[wrong[0]]}: expected names or integers "
            "from 0 on; measured values are not supported"
        )
    if numeric and all("." in value for value in distinct):
        note = f"{path.name}: labels such as {values[0]} are read as integers"
        return [str(int(float(value))) for value in values], [note]
    return values, []


def _distinct(path: Path, files: list[str], splits: list[str], texts: list[str]) -> tuple[list[int], int]:
    """Return the first row of each file, and the number of other rows."""
    first: dict[str, int] = {}
    for row, file in enumerate(files):
        other = first.setdefault(file, row)
        for kind, values in (("splits", splits), ("labels (multi-label data is not supported)", texts)):
            if values[row] != values[other]:
                raise UhkdError(
                    f"{path}: rows {other + 1} and {row + 1} have the same image {file} and different {kind}: {values[other]} "
                    f"and {values[row]}"
                )
    return [*first.values()], len(files) - len(first)


def _readable(path: Path, files: list[str], rows: list[int], skip: bool, notes: list[str]) -> list[int]:
    """Return the rows whose file exists and, if others are to be skipped, can be decoded."""
    exist = [(path.parent / files[row]).is_file() for row in rows]
    missing = [files[row] for row, exists in zip(rows, exist, strict=True) if not exists]
    if missing and not (skip and any(exist)):
        raise UhkdError(
            f"{len(missing):,} of {len(rows):,} images in {path} do not exist ({listed(missing, 3)}): expected paths with "
            f"endings, relative to {path.parent}; --skip-bad-images leaves some out"
        )
    good = decodable(len(rows), lambda i: decode_file(path.parent / files[rows[i]])) if skip else np.array(exist)
    if bad := [files[rows[i]] for i in np.flatnonzero(~good)]:
        notes.append(f"{pluralize(len(bad), 'image')} of {path.name} cannot be decoded: skipped ({listed(bad)})")
    return [row for row, usable in zip(rows, good, strict=True) if usable]
