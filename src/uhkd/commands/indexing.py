"""`index`: where each sample of tar shards lies, noted once."""

from pathlib import Path
from typing import Any

from uhkd.console import pluralize, print_result
from uhkd.data import INDEX, make_index, refuse_packed, tars
from uhkd.errors import UhkdError
from uhkd.recipe import build
from uhkd.recipe.arguments import IndexArguments
from uhkd.runs import write_atomically


def index(arguments: IndexArguments | None = None, **options: Any) -> Path:
    """Read the headers of a folder's tar shards and write what they say beside them; returns the file.

    Raises:
        UhkdError: a folder without shards, or what `make_index` refuses.
    """
    arguments = arguments or build(IndexArguments, options)
    folder = Path(arguments.folder).expanduser()
    if not folder.is_dir():
        pattern = any(sign in folder.name for sign in "*?{")
        what = "is a pattern" if pattern else "is a file" if folder.is_file() else "does not exist"
        raise UhkdError(f"{folder} {what}: expected the folder that the shards lie in, all of which are noted")
    refuse_packed(folder)
    names = [path.relative_to(folder).as_posix() for path in tars(folder)]
    if not names:
        raise UhkdError(f"no .tar files in {folder}: expected shards like train-0000.tar, or train/0000.tar")
    made = make_index(folder, names)
    write_atomically(folder / INDEX, made.to_bytes())
    classes = f"{len(made.classes)} classes by folders" if made.classes else "classes by number"
    class_text = classes if made.labels.max() >= 0 else "no classes"
    print_result(
        f"{pluralize(len(made.keys), 'sample')} in {pluralize(len(names), 'shard')}, {class_text}: {folder / INDEX}"
    )
    return folder / INDEX
