"""A comparison's folder -> results/NAME.json (its compare.json or cost.json, whole).

python results/collect.py NAME runs/compare
python results/collect.py NAME runs/cost-a runs/cost-b --cost    # measured alike, pair by pair
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
    parser.add_argument("folders", type=Path, nargs="+", help="folder of a finished comparison; several with --cost")
    parser.add_argument("--cost", action="store_true", help="take cost.json instead of compare.json")
    arguments = parser.parse_args()
    if len(arguments.folders) > 1 and not arguments.cost:
        parser.error("only costs can be put together: one folder for a comparison")
    file = "cost.json" if arguments.cost else "compare.json"
    summary, *others = (json.loads((folder / file).read_text()) for folder in arguments.folders)
    for other in others:
        if {**other, "pairs": None} != {**summary, "pairs": None}:
            parser.error("these measurements differ: title, rounds, versions, commit and machine must agree")
        summary["pairs"] |= other["pairs"]
    if summary.get("missing"):
        parser.error(f"{len(summary['missing'])} cells are missing: finish the comparison first")
    (HERE / f"{arguments.name}.json").write_text(json.dumps(placeless(summary), indent=1) + "\n")


if __name__ == "__main__":
    main()
