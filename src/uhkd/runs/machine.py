"""What a number must travel with: versions, commit, hardware."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("uhkd", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, commit, hardware and thread settings of this process: what a number must travel with."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


@cache
def _commit() -> str | None:
    """Commit of the source tree this package runs from, with '+changes' when files differ; None outside of a checkout.

    Asked once a process: later the tree may hold other code than that which was loaded.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{git('rev-parse', '--short', 'HEAD')}{'+changes' if changed else ''}" or None
