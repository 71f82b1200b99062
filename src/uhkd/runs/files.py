"""Atomic writes and safe reads of files."""

import glob
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from uhkd.console import escape, log_info
from uhkd.errors import UhkdError
from uhkd.recipe import safe_yaml

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new content, never a part.

    durable: whether to flush it to the disk; without, a power failure may leave an empty file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process with the same id
        # "x" does not follow a link
        with temporary.open("xb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def drop_leftovers(path: Path) -> None:
    """Delete temporary files that killed processes left for a path; only the process that holds its lock may call it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file of plain data; nothing in it is executed.

    Raises:
        UhkdError: if the content is something else or damaged.
        OSError: if the file cannot be read.
    """
    kind = "YAML" if path.suffix == ".yaml" else "JSON"
    try:
        text = safe_yaml.read_text(path)
        content = safe_yaml.load_yaml(text) if kind == "YAML" else json.loads(text)
    except (ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:  # from YAML tags
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UhkdError(f"{path} is damaged or was not written by uhkd: no {kind} of plain data ({why})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UhkdError(f"{path} is damaged or was not written by uhkd: expected names and values, found other {kind}")
    return content


def read_or_replace(read: Callable[[], T], replace: Callable[[], T], path: Path) -> T:
    """Return what `read` returns; if the file at `path` is missing or damaged, log it and return what `replace` returns.

    For files whose loss must not end a training.
    """
    try:
        return read()
    except (UhkdError, OSError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else str(error)
        log_info(f"warning: {path} cannot be read ({escape(reason)}); the run continues without its content")
        return replace()


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write a safetensors file atomically; tensors may have any shape, be on any device and share storage."""
    write_atomically(path, tensor_bytes(tensors))


def tensor_bytes(tensors: "Mapping[str, torch.Tensor]") -> bytes:
    """Return the content of a safetensors file."""
    from safetensors.torch import save

    # save_file would create a file that only its owner may read
    return save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()})


def check_own(folder: Path, *names: str) -> None:
    """Check that the named subfolders of `folder` are no links, through which files elsewhere would be written and deleted.

    Raises:
        UhkdError: if one is a link, with its path.
    """
    for name in names:
        parts = Path(name).parts
        for path in (folder.joinpath(*parts[: i + 1]) for i in range(len(parts))):
            if path.is_symlink():
                raise UhkdError(
                    f"{path} is a link to another place, where uhkd would write and delete: put a folder there, or choose "
                    "another --out"
                )


def leads_out(file: Path, folder: Path) -> bool:
    """Return whether a file is a link to a target outside of `folder`, which pages and model cards must not publish."""
    return file.is_symlink() and not file.resolve().is_relative_to(folder.resolve())


def check_place(path: Path) -> None:
    """Check that no file is in the way of a folder at `path`.

    Raises:
        UhkdError: if the path or one of its parents is a file.
    """
    if file := next((parent for parent in (path, *path.parents) if parent.is_file()), None):
        raise UhkdError(f"{file} is a file: expected a folder; choose another --out")


def flush_folder(path: Path) -> None:
    """Flush renames in a folder to the disk, where the system supports it (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
