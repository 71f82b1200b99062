"""Train the cells of results/steps.yaml and write what came out to results/steps/photos64.json.

python results/steps.py --data PHOTOS --out runs/steps   # PHOTOS: train/CLASS/*.jpg and val/CLASS/*.jpg
python results/steps.py --out runs/steps --collect       # run folders -> results/steps/photos64.json

Killed and started again it repeats nothing, nor what is in results/steps already. Each training runs on one core.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
FILE = HERE / "steps" / "photos64.json"
SIZE, HELD_OUT = 64, 200  # pixels; held-out images a class


def make_data(photos: Path, file: Path) -> None:
    """Write the photographs at SIZE pixels as an .npz file; of each class, HELD_OUT images of val, evenly spread, are kept."""
    from PIL import Image

    classes = sorted(path.name for path in (photos / "train").iterdir())
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for part in ("train", "val"):
        images, labels = [], []
        for label, name in enumerate(classes):
            paths = sorted((photos / part / name).iterdir())
            if part == "val":
                paths = [paths[i] for i in np.linspace(0, len(paths) - 1, HELD_OUT).round().astype(int)]
            for path in paths:
                image = Image.open(path).convert("RGB")
                scale = SIZE / min(image.size)
                width, height = (max(SIZE, round(side * scale)) for side in image.size)
                left, top = (width - SIZE) // 2, (height - SIZE) // 2
                image = image.resize((width, height), Image.Resampling.BICUBIC)
                images.append(np.asarray(image.crop((left, top, left + SIZE, top + SIZE))))
                labels.append(label)
        arrays |= {f"{part}_images": np.stack(images), f"{part}_labels": np.array(labels)}
    np.savez(file, **arrays)


def arguments_of(plan: dict[str, Any], cell: str) -> dict[str, Any]:
    """The recipe of a cell without teacher, seed and place."""
    network, start, images, batch, epochs, *changes = cell.split()
    options = plan["networks"][network]
    recipe = {**plan["common"], "train_limit": int(images)}
    recipe |= {key: options[key] for key in options.keys() & {"precision", "image_size"}}
    recipe |= {"batch_size": int(batch), "epochs": int(epochs), "eval_every": int(epochs)}
    recipe |= {name: yaml.safe_load(value) for name, value in (change.split("=") for change in changes)}
    if start in plan["pretrained"]:
        return recipe | {"model": options["name"], "options": options["options"]}
    return recipe | {"student": options["name"], "student_options": options["options"]}


def train(plan: dict[str, Any], data: str, out: Path) -> None:
    """Train every cell that is not trained yet."""
    import uhkd

    done = {(run["cell"], run["seed"]) for run in published()}
    for seed in plan["seeds"]:
        for cell in plan["cells"]:
            folder = out / cell.replace(" ", "_") / f"seed-{seed}"
            if (cell, seed) in done or (folder / "result.json").is_file():
                continue
            options = arguments_of(plan, cell) | {"data": data, "seed": seed, "out": str(folder)}
            options["resume"] = (folder / "recipe.yaml").is_file()
            start = cell.split()[1]
            if start in plan["pretrained"]:
                weights = HERE.parent / plan["pretrained"][start] / "model.safetensors"
                uhkd.finetune(**options, start=str(weights))
            elif start == "distilled":
                uhkd.distill(**options, teacher=str(teacher(plan, data, out)))
            else:
                uhkd.distill(**options, method="scratch")


def teacher(plan: dict[str, Any], data: str, out: Path) -> Path:
    """The run folder of the teacher, which is trained once."""
    import uhkd

    folder = out / "teacher"
    if not (folder / "result.json").is_file():
        options = {**plan["common"], **plan["teacher"], "data": data}
        uhkd.finetune(**options, out=str(folder), resume=(folder / "recipe.yaml").is_file())
    return folder


def published() -> list[dict[str, Any]]:
    """The trainings in FILE."""
    return json.loads(FILE.read_text())["runs"] if FILE.is_file() else []


def collect(out: Path) -> None:
    """Add the finished trainings to FILE: what all share once, and what each has of its own."""
    content = json.loads(FILE.read_text()) if FILE.is_file() else {"environments": [], "runs": []}
    runs = {(run["cell"], run["seed"]): run for run in content["runs"]}
    for file in sorted(out.glob("*/seed-*/result.json")):
        result = json.loads(file.read_text())
        recipe = yaml.safe_load((file.parent / "recipe.yaml").read_text())
        environment = {k: v for k, v in result["environment"].items() if k not in ("command", "commit")}
        content["environments"] += [] if environment in content["environments"] else [environment]
        run = {
            "cell": file.parent.parent.name.replace("_", " "),
            "seed": recipe["seed"],
            "commit": result["environment"]["commit"],
            "environment": content["environments"].index(environment),
            "recipe": {
                k: v for k, v in recipe.items() if k not in ("out", "data", "teacher", "start", "seed", "resume")
            },
            "teacher": result.get("teacher_metrics", {}),
            "metrics": result["metrics"],
        }
        runs[run["cell"], run["seed"]] = run
    shared = content.pop("recipe", {})
    recipes = [shared | run["recipe"] for run in runs.values()]
    shared = {k: v for k, v in recipes[0].items() if all(k in r and r[k] == v for r in recipes)}
    for run, recipe in zip(runs.values(), recipes, strict=True):
        run["recipe"] = {k: v for k, v in recipe.items() if k not in shared}
    content = {"recipe": shared, **content, "runs": [runs[key] for key in sorted(runs)]}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the photographs")
    parser.add_argument("--plan", type=Path, default=HERE / "steps.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collect", action="store_true")
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.out / "photos64.npz"
    if not data.is_file():
        make_data(arguments.data, data)
    train(yaml.safe_load(arguments.plan.read_text()), str(data), arguments.out)


if __name__ == "__main__":
    main()
