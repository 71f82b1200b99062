"""Checkpoints of a run, written atomically and with checksums; the last two are stored."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhkd.errors import UhkdError
from uhkd.runs.checksums import SUMS, read_sums, write_sums
from uhkd.runs.files import flush_folder, tensor_bytes, write_atomically

if TYPE_CHECKING:
    import torch

TENSORS, OPTIMIZER, FACTS = "tensors.safetensors", "optimizer.pt", "facts.json"


@dataclass(frozen=True)
class Checkpoint:
    """State for an exact resume: module and FTM tensors, optimizer state, and facts in plain data.

    damaged: newer checkpoints that could not be read, each with its reason; not written.
    """

    step: int
    tensors: "dict[str, torch.Tensor]"
    optimizer: dict[str, Any]
    facts: dict[str, Any]
    damaged: tuple[str, ...] = field(default=(), compare=False)


class Checkpoints:
    """The two newest checkpoints of a run, each a folder step-N of three files and their checksums."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint under a temporary name, rename it, and only then delete all but the previous one.

        Raises:
            OSError: if it cannot be written; older checkpoints are untouched and no partial files are left.
        """
        import torch

        self.path.mkdir(exist_ok=True)
        for leftover in self.path.glob(".step-*"):  # of a killed process: no other process may write here
            _remove(leftover)
        temporary = self.path / f".step-{checkpoint.step}.{os.getpid()}.tmp"
        optimizer = io.BytesIO()
        torch.save(checkpoint.optimizer, optimizer)
        facts = json.dumps({"step": checkpoint.step, **checkpoint.facts}, indent=1) + "\n"
        files = {TENSORS: tensor_bytes(checkpoint.tensors), OPTIMIZER: optimizer.getvalue(), FACTS: facts.encode()}
        try:
            temporary.mkdir()
            for name, content in files.items():
                write_atomically(temporary / name, content)
            write_sums(temporary, (), files)
            flush_folder(temporary)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        final = self.path / f"step-{checkpoint.step}"
        if final.exists():  # a folder cannot replace another: the old one is renamed, and deleted only afterwards
            final.replace(old := temporary.with_suffix(".old"))
            temporary.replace(final)
            _remove(old)
        else:
            temporary.replace(final)
        flush_folder(self.path)
        for folder in [folder for step, folder in self._named() if step < checkpoint.step][:-1]:
            _remove(folder)

    def read(self, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that can be used, or None without any checkpoint.

        check: raises a UhkdError for a checkpoint that does not fit; the previous one is then read.

        Raises:
            UhkdError: if none can be used: files differ from their checksums or contain more than tensors and plain data
                (nothing is executed), or `check` fails.
        """
        damaged: list[str] = []
        last: Exception | None = None
        for step, folder in reversed(self._named()):
            try:
                checkpoint = Checkpoint(step, *_read(folder), damaged=tuple(damaged))
                if check is not None:
                    check(checkpoint)
                return checkpoint
            except MemoryError:
                raise  # the files may be intact
            except Exception as error:  # a damaged file can fail in any way
                last = error
                why = error if isinstance(error, ValueError | OSError) else "unreadable"
                damaged.append(f"{folder.name}: {why}")
        if last is None:
            return None
        raise UhkdError(
            f"no checkpoint in {self.path} can be used: {'; '.join(damaged)}. Restore one from a backup, delete the "
            "folder and start again with --resume, or start another run with another --out"
        ) from last

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, damaged or not, oldest first."""
        return [step for step, _ in self._named()]

    def drop(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _named(self) -> list[tuple[int, Path]]:
        named = ((folder.name.removeprefix("step-"), folder) for folder in self.path.glob("step-*"))
        return sorted((int(number), folder) for number, folder in named if number.isdecimal())


def _remove(folder: Path) -> None:
    """Delete a folder, or a link but not its target."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _read(folder: Path) -> "tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]":
    """Return tensors, optimizer state and facts.

    Raises:
        OSError: if a file is missing.
        UhkdError: if a file differs from its checksum or has other content than expected.
    """
    import torch
    from safetensors.torch import load

    sums = read_sums(folder)
    content = {name: (folder / name).read_bytes() for name in (TENSORS, OPTIMIZER, FACTS)}
    for name, data in content.items():
        if name not in sums:
            raise UhkdError(f"{name} has no checksum in {SUMS}")
        if hashlib.sha256(data).hexdigest() != sums.get(name):
            raise UhkdError(f"{name} differs from its checksum")
    try:
        optimizer = torch.load(io.BytesIO(content[OPTIMIZER]), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UhkdError(f"{OPTIMIZER} holds more than tensors and plain data") from error
    tensors, facts = load(content[TENSORS]), json.loads(content[FACTS])
    if not isinstance(optimizer, dict) or not isinstance(facts, dict):
        raise UhkdError(f"{OPTIMIZER} or {FACTS} is no mapping")
    return tensors, optimizer, facts
