"""Tables of images and labels: .csv, .tsv or .parquet with a column of paths, one of labels and, optionally, one of parts."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uhkd.console import listed, pluralize
from uhkd.data.columns import Columns
from uhkd.data.datasets import RawSplits
from uhkd.data.decode import EXTENSIONS, common_size, decodable, decode_file
from uhkd.data.names import PARTS, TABLES
from uhkd.data.sources import FileSource
from uhkd.errors import UhkdError

_PART_COLUMNS = ("split", "set", "subset", "part", "partition", "fold", "phase")
_SAMPLED = 16  # cells of a column that show whether it holds paths of images
_HEADERS = 64  # files whose header is read to check whether all images have one size
_INTEGER = re.compile(r"0|-?[1-9]\d*")
_SHOWN = 3  # rows or files named in a message


def table_of(path: Path) -> Path | None:
    """Return the table that a path means: the file itself, or the only one in a folder, with at most one folder of images."""
    if path.is_file():
        return path if path.suffix.lower() in TABLES else None
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")] if path.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir()]
    tables = [entry for entry in entries if entry.suffix.lower() in TABLES]
    others = any(entry.suffix.lower()[1:] in EXTENSIONS for entry in entries) or len(folders) > 1
    if others or len(tables) != 1 or any(inner.is_dir() for folder in folders for inner in folder.iterdir()):
        return None
    return tables[0]


def read_table(
    columns: Columns, *, skip_bad_images: bool, class_names: Sequence[str] | None, labels: bool
) -> RawSplits:
    """Return the images of a table by part (column split or the like; without one, all are training images).

    Paths are relative to the table's folder. Labels are class names, sorted, or integers, in their order.

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
        raise UhkdError(f"{path} has no rows: expected a row of column names, then one row for each image")
    paths = [name for name, values in cells.items() if _holds_paths(values)]
    image = columns.find("image", [*cells], str(path), paths)
    label = columns.find("label", [*cells], str(path), [], labels)
    assert image is not None
    part = next((n for n in cells if n.strip().lower() in _PART_COLUMNS and {*_parts(cells[n])} - {""}), None)
    files = [_relative(name, path.parent) for name in cells[image]]
    _refuse_empty(path, image, files)
    parts = ["train"] * len(files) if part is None else _parts(cells[part])
    if (row := next((row for row, found in enumerate(parts, 1) if not found), None)) is not None:
        raise UhkdError(
            f"{path}: column {part} has {cells[str(part)][row - 1]!r} in row {row}: expected train, val or test in every row"
        )
    texts, notes = (None, []) if label is None else _labels(path, label, cells[label])
    unused = listed([name for name in cells if name not in (image, label, part)])
    used = f"images from column {image}, labels from {label or 'none'}, parts from {part or 'none'}"
    notes = [f"{path.name}: {used}{unused and f'; not used: {unused}'}", *notes]
    rows = _distinct(path, files, list(zip(parts, texts or parts, strict=True)), notes)
    good = _existing(path, [files[row] for row in rows], skip_bad_images, notes)
    rows = [row for row, exists in zip(rows, good, strict=True) if exists]
    classes, numbers = _classes(path, texts, class_names)
    sources = {
        name: FileSource(path.parent, [files[i] for i in chosen], None if numbers is None else numbers[chosen])
        for name in dict.fromkeys(PARTS.values())
        if (chosen := [row for row in rows if parts[row] == name])
    }
    if "train" not in sources:
        raise UhkdError(f"{path} has no training images: expected train in some rows of column {part}")
    train = sources["train"]
    size = common_size(len(train), train.path, _HEADERS)
    return RawSplits(classes, train, sources.get("val"), sources.get("test"), size, tuple(notes), by_columns=True)


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            # a spreadsheet writes semicolons where the comma is the decimal point
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
            rows = [row for row in csv.reader(file, delimiter=delimiter, skipinitialspace=True) if any(row)]
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        raise UhkdError(f"{path} cannot be read as a table ({error}): expected text in UTF-8, with commas") from error
    names = rows[0] if rows else []
    if wrong := next((number for number, row in enumerate(rows) if len(row) != len(names)), None):
        raise UhkdError(
            f"{path}: row {wrong} has {pluralize(len(rows[wrong]), 'cell')}, the first line has {len(names)} column names: "
            "put cells that contain commas in quotes"
        )
    if len(set(names)) < len(names):
        raise UhkdError(f"{path} has columns of the same name: {listed(names)}")
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UhkdError(
            f"{path} needs the package pyarrow: pip install 'uhkd[hf]', or write the table as .csv"
        ) from error
    try:
        schema = pq.read_schema(path)
        images = [field.name for field in schema if pa.types.is_struct(field.type) or pa.types.is_binary(field.type)]
        if images:
            raise UhkdError(
                f"{path} holds images ({listed(images)}), not their paths: open it as a Hugging Face data set, "
                f"--data hfds/{path.parent}"
            )
        cells = pq.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise UhkdError(f"{path} cannot be read as a Parquet file ({error})") from error
    return {name: ["" if v is None or v != v else str(v).strip() for v in values] for name, values in cells.items()}


def _holds_paths(values: Sequence[str]) -> bool:
    sample = values[:_SAMPLED]
    return all(value.rpartition(".")[2].lower() in EXTENSIONS and "." in value for value in sample)


def _parts(values: Sequence[str]) -> list[str]:
    """Return train, val or test for each cell; "" for another one."""
    return [PARTS.get(value.lower(), "") for value in values]


def _relative(name: str, folder: Path) -> str:
    """Return a path below the table's folder; backslashes, as written on Windows, separate folders."""
    if "\\" in name and not (folder / name).exists():
        name = name.replace("\\", "/")
    return Path(name).relative_to(folder).as_posix() if Path(name).is_relative_to(folder) else name


def _refuse_empty(path: Path, column: str, values: Sequence[str]) -> None:
    if empty := [row for row, value in enumerate(values, 1) if value in ("", "nan", "NaN")]:
        raise UhkdError(
            f"{path}: column {column} is empty in {pluralize(len(empty), 'row')} (first: row {empty[0]}): fill or remove them"
        )


def _labels(path: Path, column: str, values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the class of each row, as text, and notes.

    Raises:
        UhkdError: empty cells, several labels in one cell, negative numbers or numbers with a fraction.
    """
    _refuse_empty(path, column, values)
    pieces = {value: re.split(r"\s*[|;]\s*", value) for value in {*values}}
    single = {value for value, found in pieces.items() if len(found) == 1}
    several = {v for v, found in pieces.items() if v.startswith("[") or (len(found) > 1 and {*found} & single)}
    if several:
        row = next(row for row, value in enumerate(values, 1) if value in several)
        raise UhkdError(
            f"{path}: column {column} has several labels in row {row} ({values[row - 1]}): multi-label data is not supported, "
            "expected one class for each image"
        )
    try:
        numbers = {value: float(value) for value in {*values}}
    except ValueError:
        return list(values), []
    if any(number < 0 for number in numbers.values()):
        raise UhkdError(f"{path}: column {column} has negative labels ({min(numbers.values()):g}): remove these rows")
    if all("." in value for value in values):
        if not all(number.is_integer() for number in numbers.values()):
            fraction = next(value for value in values if not numbers[value].is_integer())
            raise UhkdError(
                f"{path}: column {column} holds measured values ({fraction}): expected a class for each image"
            )
        return [str(int(numbers[value])) for value in values], [f"labels such as {values[0]} are read as integers"]
    return list(values), []


def _distinct(path: Path, files: Sequence[str], rows: Sequence[tuple[str, str]], notes: list[str]) -> list[int]:
    """Return the first row of each file; `rows` has its part and label."""
    first: dict[str, int] = {}
    for row, file in enumerate(files):
        other = first.setdefault(file, row)
        if rows[row] != rows[other]:
            what = "parts" if rows[row][0] != rows[other][0] else "labels, but multi-label data is not supported"
            pair = " and ".join(dict.fromkeys([*rows[other], *rows[row]]))
            raise UhkdError(
                f"{path}: {file} is in rows {other + 1} and {row + 1} with different {what} ({pair}): keep one of them"
            )
    if repeated := len(files) - len(first):
        notes.append(f"{pluralize(repeated, 'row')} that repeat an image with the same label: ignored")
    return [*first.values()]


def _existing(path: Path, files: Sequence[str], skip: bool, notes: list[str]) -> np.ndarray:
    """Return whether each file is to be used: (N,)."""
    folder = path.parent
    good = np.array([(folder / file).is_file() for file in files])
    if missing := [files[i] for i in np.flatnonzero(~good)]:
        named = f"{len(missing):,} of the {len(files):,} files in {path} do not exist ({listed(missing, _SHOWN)})"
        if not skip or not good.any():
            similar = [*folder.glob(f"*/{Path(missing[0]).name}"), *folder.glob(f"**/{Path(missing[0]).name}.*")][:1]
            hint = f"; {similar[0].relative_to(folder)} exists" if similar else ""
            raise UhkdError(
                f"{named}{hint}: expected paths relative to {folder}, with endings"
                + ("" if skip else "; --skip-bad-images leaves out missing files")
            )
        notes.append(f"{named}: skipped")
    if skip:
        present = np.flatnonzero(good)
        good[present] = decodable(len(present), lambda i: decode_file(folder / files[present[i]]))
        if bad := [files[i] for i in present if not good[i]]:
            notes.append(f"{pluralize(len(bad), 'image')} cannot be decoded: skipped ({listed(bad)})")
    return good


def _classes(path: Path, texts: Sequence[str] | None, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], Any]:
    """Return the classes, integers in their order and names sorted, and the class number of each row (or None)."""
    if texts is None:
        return (), None
    present = {*texts}
    integers = all(_INTEGER.fullmatch(text) for text in present)
    classes = tuple(class_names or sorted(present, key=int if integers else None))
    if unknown := sorted(present - {*classes}):
        raise UhkdError(
            f"{path} has labels that are not among the classes expected here: {listed(unknown)}; expected only: "
            f"{listed(classes)}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[text] for text in texts])
