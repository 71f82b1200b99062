"""Folders that are written to: here, temporary ones, shared memory, caches below the home folder."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

from uhkd.commands.diagnosing.finding import Finding
from uhkd.text import file_size

_SHARED = Path("/dev/shm")


def here() -> Finding:
    """The current folder, where runs/ goes."""
    folder = Path("runs") if Path("runs").is_dir() else Path.cwd()
    return judge_place("disk", folder.resolve(), why_not(folder), shutil.disk_usage(folder).free)


def judge_place(topic: str, folder: Path, why: str | None, free: int) -> Finding:
    """Whether runs can be written to a folder: why not (None: they can), and free bytes of its disk."""
    if why is not None:
        return Finding(
            topic, f"{folder} cannot be written: {why}", "fault", "name another place by --out, or mend its permissions"
        )
    said = f"{file_size(free)} free in {folder}"
    if free < 5e8:
        return Finding(
            topic, said, "fault", "make room: a run keeps weights, a checkpoint and pictures; or --out on another disk"
        )
    if free < 5e9:
        return Finding(
            topic,
            said,
            "warning",
            "little is free: a cache of a teacher's signals may need more (uhkd cache --dry-run)",
        )
    return Finding(topic, said)


def why_not(folder: Path) -> str | None:
    """Why nothing can be written into a folder, in the system's words; None if it can. A missing one: into the first above it."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error.strerror or str(error)


def temporary() -> Finding:
    """The folder for temporary files."""
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return Finding("temporary files", str(error), "fault", "set TMPDIR to a folder that can be written")
    free = shutil.disk_usage(folder).free
    if free < 1e8:
        return Finding("temporary files", f"{file_size(free)} free in {folder}", "warning", "make room, or set TMPDIR")
    return Finding("temporary files", f"{file_size(free)} free in {folder}")


def shared() -> Finding:
    """Shared memory, through which loader processes hand over images (64 MB in a container unless more is asked for)."""
    if not _SHARED.is_dir():
        return Finding("shared memory", "no limit of its own on this system")
    return judge_shared(shutil.disk_usage(_SHARED).free)


def judge_shared(free: int) -> Finding:
    """Free bytes of shared memory."""
    said = f"{file_size(free)} free in {_SHARED}"
    if free < 5e8:
        advice = "loader processes may end with a bus error: docker run --shm-size=8g, or --workers 0"
        return Finding("shared memory", said, "warning", advice)
    return Finding("shared memory", said)


def home() -> Finding:
    """The home folder: caches go below it where nothing else is said."""
    try:
        folder = Path.home()
    except RuntimeError:
        return Finding(
            "home", "not known", "warning", "set HOME (USERPROFILE on Windows) to a folder that can be written"
        )
    if (why := why_not(folder)) is not None:
        advice = "set HOME, or HF_HOME (weights), MPLCONFIGDIR (fonts) and --shard-cache (shards) to folders that can be written"
        return Finding("home", f"{folder} cannot be written: {why}", "warning", advice)
    return Finding("home", f"{folder}, writable")


def weights() -> Finding:
    """Where timm's pretrained weights would go, and whether they could be written there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    if (why := why_not(folder)) is not None:
        return Finding(
            "weights cache", f"{folder} cannot be written: {why}", "warning", "set HF_HOME to a folder that can be"
        )
    return Finding("weights cache", f"{folder}, writable")


def fonts() -> Finding:
    """Matplotlib's list of fonts: made anew by every process where it cannot be kept, which takes seconds."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell the same on its own
    import matplotlib

    folder = Path(matplotlib.get_cachedir())
    kept = os.environ.get("MPLCONFIGDIR") or not folder.is_relative_to(tempfile.gettempdir())
    if not kept or why_not(folder) is not None:
        advice = "set MPLCONFIGDIR to a folder that can be written and stays"
        return Finding("font cache", f"{folder} is not kept", "warning", advice)
    return Finding("font cache", f"{folder}, writable")


PLACES = {
    "disk": here,
    "temporary files": temporary,
    "shared memory": shared,
    "home": home,
    "weights cache": weights,
    "font cache": fonts,
}
