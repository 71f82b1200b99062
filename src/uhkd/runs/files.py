"""Files that are whole or not there."""

import glob
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from uhkd.errors import UhkdError
from uhkd.recipe import safe_yaml

if TYPE_CHECKING:
    import torch


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it: a reader sees the old or the new, whole.

    durable: whether it is waited until the disk has it; without, a loss of power may leave it empty.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process of this number that was killed
        # "x": a link that somebody put there is not followed
        with temporary.open("xb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def drop_leftovers(path: Path) -> None:
    """Delete what processes that were killed left of a file: for who alone may write it now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a JSON or YAML file holds; plain data, nothing in it is executed.

    Raises:
        UhkdError: when it holds anything else, or is damaged.
        OSError: when it cannot be read.
    """
    kind = "YAML" if path.suffix == ".yaml" else "JSON"
    try:
        text = safe_yaml.read_text(path)
        content = safe_yaml.load_yaml(text) if kind == "YAML" else json.loads(text)
    except (ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:  # YAML's tags raise many
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UhkdError(f"{path} is damaged or was not written by us: no {kind} of plain data ({why})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UhkdError(f"{path} is damaged or was not written by us: expected names and values, found other {kind}")
    return content


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """A safetensors file, atomically; tensors by name may have any shape, be on any device and share storage."""
    write_atomically(path, tensor_bytes(tensors))


def tensor_bytes(tensors: "Mapping[str, torch.Tensor]") -> bytes:
    """What a safetensors file of them holds."""
    from safetensors.torch import save

    # not by save_file: that makes a file which other users of the machine may not read
    return save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()})


def check_own(folder: Path, *names: str) -> None:
    """See that folders of ours below `folder` are no links: who writes and deletes there would do so in another place.

    Raises:
        UhkdError: when one is, named.
    """
    for name in names:
        parts = Path(name).parts
        for place in (folder.joinpath(*parts[: i + 1]) for i in range(len(parts))):
            if place.is_symlink():
                raise UhkdError(
                    f"{place} is a link to another place, where uhkd would write and delete: put a folder there, or choose "
                    "another --out"
                )


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link to another place, which a page or a card would show to whoever is given it."""
    return file.is_symlink() and not file.resolve().is_relative_to(folder.resolve())


def check_place(path: Path) -> None:
    """See that a folder can be made at `path`, as far as names go.

    Raises:
        UhkdError: when the path, or one above it, is a file.
    """
    if file := next((place for place in (path, *path.parents) if place.is_file()), None):
        raise UhkdError(f"{file} is a file: expected a folder; choose another --out")


def flush_folder(path: Path) -> None:
    """Make renames in a folder outlive a loss of power, where the system lets us (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
