"""Suggestions for a mistyped path."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from uhkd.errors import UhkdError


def near_paths(name: str | Path, accept: Callable[[Path], bool]) -> list[str]:
    """Return up to three existing paths like a missing one with one mistyped part, nearest first, written as it is.

    accept: whether a path is of the kind that is meant.
    """
    path = Path(name)
    parent = next((parent for parent in path.parents if parent.expanduser().is_dir()), None)
    if parent is None:
        return []
    missing, *rest = path.relative_to(parent).parts
    try:
        present = sorted(entry.name for entry in parent.expanduser().iterdir())
    except OSError:  # not readable
        return []
    found = (parent.joinpath(near, *rest) for near in get_close_matches(missing, present, len(present) + 1))
    return [str(near) for near in found if accept(near.expanduser())][:3]


def check_folder(path: Path) -> None:
    """Check that a folder of runs exists.

    Raises:
        UhkdError: it does not; the message names similar ones.
    """
    if not path.is_dir():
        hint = path_hint(path, Path.is_dir) or "; give run folders, or folders that contain them"
        raise UhkdError(f"no such folder: {path}{hint}")


def path_hint(name: str | Path, accept: Callable[[Path], bool]) -> str:
    """Return '; did you mean ...?' with existing paths like a missing one, or an empty string; see `near_paths`."""
    near = near_paths(name, accept)
    return f"; did you mean {' or '.join(near)}?" if near else ""
