"""A finished run -> results/teachers/NAME, a small run folder that serves as a teacher anywhere.

python results/keep_teacher.py NAME RUN
uhkd distill --teacher results/teachers/NAME ...

Weights are kept in half precision; recipe and result name data and teacher without places of this machine.
"""

import argparse
from pathlib import Path

import yaml
from safetensors.torch import load_file, save

from uhkd.runs import RunFolder, write_atomically

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the folder to write")
    parser.add_argument("run", type=RunFolder, help="folder of a finished run of finetune or distill")
    arguments = parser.parse_args()
    run = arguments.run
    if not run.result.is_file():
        parser.error(f"{run.path} is no finished run: it has no {run.result.name}")
    result, recipe = run.read_result(), run.read_recipe()
    recipe["data"] = result["data"]
    for source in (recipe, result):
        if source.get("teacher"):
            source["teacher"] = Path(source["teacher"]).name
    result["environment"].pop("command", None)
    folder = RunFolder(HERE / "teachers" / arguments.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(run.weights).items()}
    write_atomically(folder.weights, save(half))
    folder.write_json(folder.config.name, run.read_config())
    write_atomically(folder.recipe, yaml.safe_dump(recipe, sort_keys=False))
    folder.write_json(folder.result.name, result)  # last: the folder is whole


if __name__ == "__main__":
    main()
