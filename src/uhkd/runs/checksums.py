"""SHA256SUMS: the checksums of the files of a finished run, or of a checkpoint, in the format of sha256sum."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from uhkd.console import log_info
from uhkd.runs.files import write_atomically

SUMS = "SHA256SUMS"
"""Name of the file; `sha256sum -c SHA256SUMS` checks what it lists."""
_MAX_BYTES = 2**20  # it lists about ten files
_reported: set[Path] = set()


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksum of each listed file by its name; none without SHA256SUMS."""
    file = folder / SUMS
    if not file.is_file() or file.stat().st_size > _MAX_BYTES:
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_sums(folder: Path, files: Iterable[Path], contents: Mapping[str, bytes]) -> None:
    """Write the checksums of files that exist and, by name, of contents that are about to be written."""
    sums = {file.name: _digest(file) for file in files if file.is_file()}
    sums |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_atomically(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def differs(path: Path) -> bool:
    """Return whether a file differs from its checksum in the SHA256SUMS beside it; False if it is not listed there."""
    expected = read_sums(path.parent).get(path.name)
    return expected is not None and path.is_file() and expected != _digest(path)


def report_difference(path: Path) -> None:
    """Log, once for each file, that it differs from its checksum."""
    if path not in _reported and differs(path):
        _reported.add(path)
        log_info(
            f"warning: {path} differs from its checksum in {SUMS}: it was changed after the training, or is damaged"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
