"""Free disk space of folders that may not exist yet."""

import shutil
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """Return the absolute path, or its nearest parent that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free
