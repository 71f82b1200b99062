"""Write digests.json anew, and print what differs from the last one.

python tests/golden/renew.py            # writes
python tests/golden/renew.py --check    # prints alone; exit code 1 where something differs
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import torch  # noqa: E402

from golden import trainings as golden  # noqa: E402

PACKAGES = ("torchvision", "timm", "numpy", "pillow", "scikit-learn", "pytorch-lightning")


def text(content: dict[str, Any]) -> str:
    """JSON with one line a case and kind, so that a change shows which numbers are others."""
    cases = {
        name: "{\n"
        + ",\n".join(f"   {json.dumps(kind)}: {json.dumps(own)}" for kind, own in measured.items())
        + "\n  }"
        for name, measured in content["cases"].items()
    }
    head = {name: own for name, own in content.items() if name != "cases"}
    listed = ",\n".join(f"  {json.dumps(name)}: {body}" for name, body in cases.items())
    return json.dumps(head, indent=1).removesuffix("\n}") + ',\n "cases": {\n' + listed + "\n }\n}\n"


def commit() -> str:
    """Return the last commit that changed the package, with "+changes" where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words, "--", "src"], capture_output=True, text=True
        ).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+changes" if git("status", "--porcelain") else "")


def main() -> int:
    """Train all cases; return 1 with --check where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # advice of Lightning
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    before: dict[str, Any] = golden.read() if golden.FILE.is_file() else {"cases": {}}
    now: dict[str, Any] = {"conditions": golden.conditions(), "packages": {name: version(name) for name in PACKAGES}}
    now |= {"commit": commit(), "cases": {}}
    exact, differing = before.get("conditions") == now["conditions"], 0
    with tempfile.TemporaryDirectory() as folder:
        trainings = golden.Trainings(Path(folder))
        for name in golden.CASES:
            now["cases"][name] = trainings.measure(name)
            known = before["cases"].get(name)
            lines = ["new"] if known is None else golden.differences(known, now["cases"][name], exact=exact)
            differing += bool(lines)
            print("\n  ".join([f"{name}: {'other' if lines else 'same'}", *lines]), flush=True)
    for name in before["cases"].keys() - golden.CASES.keys():
        print(f"{name}: gone")
    how = "to the bit" if exact else f"within {golden.TOLERANCE:g}, as the arithmetic is another one"
    print(f"{differing} of {len(golden.CASES)} cases differ, compared {how}")
    if not asked.check:
        golden.FILE.write_text(text(now), encoding="utf-8")
    return int(asked.check and differing > 0)


if __name__ == "__main__":
    sys.exit(main())
