"""`index`: an index file of the samples in tar shards."""

from pathlib import Path
from typing import Any

from uhkd.console import pluralize, print_result
from uhkd.data import INDEX, make_index, refuse_packed, tars
from uhkd.errors import UhkdError
from uhkd.recipe import build
from uhkd.recipe.arguments import IndexArguments
from uhkd.runs import write_atomically


def index(arguments: IndexArguments | None = None, **options: Any) -> Path:
    """Read the headers of the tar shards in a folder, write an index file to it, and return its path.

    Raises:
        UhkdError: the folder has no shards, or `make_index` rejects one.
    """
    arguments = arguments or build(IndexArguments, options)
    folder = Path(arguments.folder).expanduser()
    if not folder.is_dir():
        pattern = any(sign in folder.name for sign in "*?{")
        what = "is a pattern" if pattern else "is a file" if folder.is_file() else "does not exist"
        raise UhkdError(f"{folder} {what}: expected the folder that contains all shards")
    refuse_packed(folder)
    names = [path.relative_to(folder).as_posix() for path in tars(folder)]
    if not names:
        raise UhkdError(f"no .tar files in {folder}: expected shards like train-0000.tar, or train/0000.tar")
    shard_index = make_index(folder, names)
    write_atomically(folder / INDEX, shard_index.to_bytes())
    classes = f"{len(shard_index.classes)} classes by folders" if shard_index.classes else "classes by number"
    if shard_index.labels.max() < 0:
        classes = "no classes"
    counts = f"{pluralize(len(shard_index.keys), 'sample')} in {pluralize(len(names), 'shard')}"
    print_result(f"{counts}, {classes}: {folder / INDEX}")
    return folder / INDEX
