"""The environment of a run: versions, commit and hardware, which are recorded with every result."""

import contextlib
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
    """Return versions, commit, hardware and thread settings of this process."""
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
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


@cache
def processor() -> str:
    """Return the name of the CPU; where the system does not give one, its architecture."""
    with contextlib.suppress(OSError):  # Linux alone has this file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@cache
def _commit() -> str | None:
    """Return the commit of the source tree of this package, with "+changes" if files differ; None outside of a checkout.

    Cached, because the tree may change after the code was loaded.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{git('rev-parse', '--short', 'HEAD')}{'+changes' if changed else ''}" or None
