"""A finished run -> results/teachers/NAME, which serves as a teacher anywhere: `--teachers results/teachers/NAME`.

python results/keep_teacher.py NAME RUN

card.json and model.safetensors, the weights in half precision, are what a run folder has; teacher.json says how they were made.
"""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save

from uhkd.runs import RunFolder, write_atomically

HERE = Path(__file__).resolve().parent
_PLACES = ("data", "teacher", "teacher_cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the folder to write")
    parser.add_argument("run", type=RunFolder, help="folder of a finished run of finetune or distill")
    asked = parser.parse_args()
    run = asked.run
    if not run.result.is_file():
        parser.error(f"{run.path} is no finished run: it has no {run.result.name}")
    kept = RunFolder(HERE / "teachers" / asked.name)
    kept.path.mkdir(parents=True, exist_ok=True)
    state = load_file(run.weights)
    write_atomically(kept.weights, save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}))
    write_atomically(kept.card, run.card.read_text())
    result, recipe = run.read_result(), run.read_recipe()
    facts = {name: result[name] for name in ("verb", "metrics", "train_images", "data", "seed")}
    recipe |= {name: Path(recipe[name]).name for name in _PLACES if recipe.get(name)}  # without places of this machine
    environment = {name: value for name, value in result["environment"].items() if name != "command"}
    kept.write_json("teacher.json", facts | {"recipe": recipe, "environment": environment})


if __name__ == "__main__":
    main()
