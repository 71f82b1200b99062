"""Run folders -> results/NAME.json.

python results/collect.py NAME --title TITLE --teacher runs/teacher runs/a runs/b ...
"""

import argparse
import json
from pathlib import Path

from uhkd.commands.summary import gather
from uhkd.runs import RunFolder

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the file to write, without .json")
    parser.add_argument("--title", help="heading of the table")
    parser.add_argument("--teacher", help="run folder of the teacher")
    parser.add_argument("--demo", help="a demo's folder: take its demo.json instead of run folders")
    parser.add_argument("runs", nargs="*", help="run folders of the students")
    asked = parser.parse_intermixed_args()
    if asked.demo:
        summary = json.loads((Path(asked.demo) / "demo.json").read_text())
    elif asked.teacher and asked.title and asked.runs:
        summary = gather(asked.title, RunFolder(asked.teacher), [RunFolder(run) for run in asked.runs])
    else:
        parser.error("give --demo, or --title, --teacher and run folders")
    (HERE / f"{asked.name}.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
