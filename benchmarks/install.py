"""Measure what `make install` and `make install-dev` take from a fresh clone: wall time and disk space.

    python benchmarks/install.py --out results/installation/install.json

pip's cache is not used, so the time includes all downloads and depends on the network. Both commands run once, one after the
other; the second adds the development tools to the environment of the first.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import parser, save

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("install", "install-dev")


def disk_space(folder: Path) -> int:
    """Return the bytes on disk of all files in a folder; a file with several links counts once."""
    blocks = {s.st_ino: s.st_blocks for path in folder.rglob("*") if (s := path.lstat())}
    return 512 * sum(blocks.values())


def main() -> None:
    """Measure and write."""
    arguments = parser(__doc__, rounds=1, least=1).parse_args()
    steps: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "uhkd")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        for command in COMMANDS:
            began = time.perf_counter()
            subprocess.run(["make", command], cwd=clone, env=os.environ | {"PIP_NO_CACHE_DIR": "1"}, check=True)
            seconds, size = time.perf_counter() - began, disk_space(clone / ".venv")
            steps[command] = {"seconds": seconds, "bytes": size}
            print(f"make {command}: {seconds:.0f} s, .venv has {size / 1e9:.1f} GB")
    save(arguments.out, "Installation from a fresh clone", {}, commands=steps)


if __name__ == "__main__":
    main()
