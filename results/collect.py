"""A comparison's folder -> results/NAME.json (its compare.json or cost.json, whole).

python results/collect.py NAME runs/compare
"""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def placeless(content: Any) -> Any:
    """The same without folders of this machine: a cache is called by its own name."""
    if isinstance(content, dict):
        return {
            k: Path(v).name if k == "teacher_cache" and isinstance(v, str) else placeless(v) for k, v in content.items()
        }
    return [placeless(item) for item in content] if isinstance(content, list) else content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the file to write, without .json")
    parser.add_argument("folder", type=Path, help="folder of a finished comparison")
    parser.add_argument("--cost", action="store_true", help="take cost.json instead of compare.json")
    asked = parser.parse_args()
    summary = json.loads((asked.folder / ("cost.json" if asked.cost else "compare.json")).read_text())
    if summary.get("missing"):
        parser.error(f"{len(summary['missing'])} cells are missing: finish the comparison first")
    (HERE / f"{asked.name}.json").write_text(json.dumps(placeless(summary), indent=1) + "\n")


if __name__ == "__main__":
    main()
