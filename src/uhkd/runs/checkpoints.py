"""Checkpoints of a run: whole, under checksum, and the one before as well."""

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
from uhkd.runs.files import flush_folder, tensor_bytes, write_atomically

if TYPE_CHECKING:
    import torch

TENSORS, OPTIMIZER, FACTS = "tensors.safetensors", "optimizer.pt", "facts.json"
SUMS = "SHA256SUMS"  # as `sha256sum` writes it: `sha256sum -c SHA256SUMS` checks a checkpoint without us
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What exact resume needs: module and FTM tensors, the optimizer's state, and plain facts such as the step.

    `passed_over` says of newer ones why they could not be read; it is no part of what is written.
    """

    step: int
    tensors: "dict[str, torch.Tensor]"
    optimizer: dict[str, Any]
    facts: dict[str, Any]
    passed_over: tuple[str, ...] = field(default=(), compare=False)


class Checkpoints:
    """The newest two checkpoints of a run, each a folder step-N of three files and their checksums."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, checkpoint: Checkpoint) -> None:
        """Write whole under a temporary name, rename, and only then drop all but the one before.

        Raises:
            OSError: when it could not be written; what was there before is untouched and nothing half-written is left.
        """
        import torch

        self.path.mkdir(exist_ok=True)
        for leftover in self.path.glob(".step-*"):  # of a process that was killed: the folder is ours alone
            _remove(leftover)
        temporary = self.path / f".step-{checkpoint.step}.{os.getpid()}.tmp"
        optimizer = io.BytesIO()
        torch.save(checkpoint.optimizer, optimizer)
        facts = json.dumps({"step": checkpoint.step, **checkpoint.facts}, indent=1) + "\n"
        files = {TENSORS: tensor_bytes(checkpoint.tensors), OPTIMIZER: optimizer.getvalue(), FACTS: facts.encode()}
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        try:
            temporary.mkdir()
            for name, content in {**files, SUMS: sums.encode()}.items():
                write_atomically(temporary / name, content)
            flush_folder(temporary)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        final = self.path / f"step-{checkpoint.step}"
        if final.exists():  # a folder cannot be renamed onto one: the old one steps aside, it is not deleted before
            final.replace(old := temporary.with_suffix(".old"))
            temporary.replace(final)
            _remove(old)
        else:
            temporary.replace(final)
        flush_folder(self.path)
        older = [folder for step, folder in self._named() if step < checkpoint.step]
        for folder in older[: -(KEEP - 1)]:
            _remove(folder)

    def read(self, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """The newest whole checkpoint, or None when there is none at all.

        check: refuses by a ValueError one that is whole and yet of no use; the one before is then looked at.

        Raises:
            UhkdError: when none can be used: files that differ from their checksums, or hold more than tensors and plain
                data (nothing is executed), or are refused by `check`.
        """
        passed_over: list[str] = []
        last: Exception | None = None
        for step, folder in reversed(self._named()):
            try:
                found = Checkpoint(step, *_read(folder), passed_over=tuple(passed_over))
                if check is not None:
                    check(found)
                return found
            except MemoryError:
                raise  # says nothing about the files
            except Exception as error:  # a damaged file can fail in any way
                last = error
                why = error if isinstance(error, ValueError | OSError) else "unreadable"
                passed_over.append(f"{folder.name}: {why}")
        if last is None:
            return None
        raise UhkdError(
            f"no checkpoint in {self.path} can be used: {'; '.join(passed_over)}. Bring one back from a backup, delete the "
            "folder to begin anew with --resume, or start another run with another --out"
        ) from last

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, read or not, oldest first."""
        return [step for step, _ in self._named()]

    def drop(self) -> None:
        """Delete all."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _named(self) -> list[tuple[int, Path]]:
        named = ((folder.name.removeprefix("step-"), folder) for folder in self.path.glob("step-*"))
        return sorted((int(number), folder) for number, folder in named if number.isdecimal())


def _remove(folder: Path) -> None:
    """Delete a folder, or a link to one and nothing behind it."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _read(folder: Path) -> "tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]":
    """Tensors, optimizer's state and facts.

    Raises:
        UhkdError: in a few words, when a file is missing, differs from its checksum or is not what it should be.
    """
    import torch
    from safetensors.torch import load

    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    content = {name: (folder / name).read_bytes() for name in (TENSORS, OPTIMIZER, FACTS)}
    for name, found in content.items():
        if hashlib.sha256(found).hexdigest() != sums.get(name):
            raise UhkdError(f"{name} differs from its checksum")
    try:
        optimizer = torch.load(io.BytesIO(content[OPTIMIZER]), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UhkdError(f"{OPTIMIZER} holds more than tensors and plain data") from error
    tensors, facts = load(content[TENSORS]), json.loads(content[FACTS])
    if not isinstance(optimizer, dict) or not isinstance(facts, dict):
        raise UhkdError(f"{OPTIMIZER} or {FACTS} is no mapping")
    return tensors, optimizer, facts
