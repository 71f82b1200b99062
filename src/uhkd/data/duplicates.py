"""Image files of a validation or test split that are training images too."""

import filecmp
from collections.abc import Sequence
from pathlib import Path

from uhkd.console import escape, pluralize
from uhkd.data.sources import FileSource

_MOST = 50_000  # files of both splits that are looked at
_ENDS = 4096  # bytes


def duplicates_note(train: FileSource, other: FileSource, split: str) -> list[str]:
    """Return a note if files of another split have the content of training files; none for very many files."""
    if len(train) + len(other) > _MOST:
        return []
    try:
        equal = _equal_files([train.path(i) for i in range(len(train))], [other.path(i) for i in range(len(other))])
    except OSError:  # reported when the image is used
        return []
    if not equal:
        return []
    path, twin = (escape(str(path)) for path in equal[0])
    return [
        f"{pluralize(len(equal), 'file')} of {split} with the content of a training file ({path} = {twin}): numbers on "
        f"{split} will be too high; remove them from one of the splits"
    ]


def _equal_files(train: Sequence[Path], other: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return each file of `other` that has an equal file in `train`, with that file."""
    sizes = [path.stat().st_size for path in other]
    wanted, ends = set(sizes), {}
    for path in train:
        if (size := path.stat().st_size) in wanted:
            ends[_ends(path, size)] = path
    twins = [(path, ends.get(_ends(path, size))) for path, size in zip(other, sizes, strict=True)] if ends else []
    return [(path, twin) for path, twin in twins if twin is not None and filecmp.cmp(path, twin, shallow=False)]


def _ends(path: Path, size: int) -> tuple[int, bytes, bytes]:
    """Return what tells most different files of one size apart: their first and last bytes."""
    with path.open("rb") as file:
        first = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return size, first, file.read(_ENDS)
