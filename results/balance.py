"""Train the cells of results/balance.yaml and write what came out to results/balance/REGIME.json.

python results/balance.py --data cifar100=FILE [photos=FOLDER] --out runs/balance   # started twice: two processes share it
python results/balance.py --out runs/balance --collect   # run folders -> results/balance/

Killed and started again it repeats nothing. Each training runs on one core; its teacher's outputs are stored once a regime.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

HERE = Path(__file__).parent
CACHE_WORDS = ("data", "train_limit", "crop", "flip", "crop_scale")
OWN = {"out", "seed", "resume", "teacher_cache", "thumbnails", "log"}


def cells(plan: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(regime, variant, seed) of every training, in the order of the file, first seeds first."""
    listed = [(r, v, s) for r, variants in plan["cells"].items() for v, count in variants.items() for s in range(count)]
    return sorted(listed, key=lambda cell: cell[2])


def words_of(plan: dict[str, Any], regime: str, variant: str, data: dict[str, str]) -> dict[str, Any]:
    """The recipe of a cell without seed and place."""
    words = {**plan["common"], **plan["regimes"][regime], **plan["variants"][variant]}
    return words | {"data": data[words["data"]]}


def train(plan: dict[str, Any], data: dict[str, str], out: Path) -> None:
    """Train whatever nobody has trained or is training, until nothing is left."""
    import uhkd

    caches: dict[str, str] = {}
    while True:
        busy = False
        for regime, variant, seed in cells(plan):
            words = words_of(plan, regime, variant, data)
            live = words.pop("live", False)
            folder = out / regime / variant / f"seed-{seed}"
            if (folder / "result.json").is_file() or (folder / "failed.txt").is_file():
                continue
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(f"{folder}.lock", timeout=0):
                    if (folder / "result.json").is_file():
                        continue
                    if words["method"] == "scratch":
                        del words["teacher"]
                    elif not live:
                        caches[regime] = caches.get(regime) or stored(words, out / regime / "cache")
                        words["teacher_cache"] = caches[regime]
                    began = (folder / "recipe.yaml").is_file()
                    uhkd.distill(**words, seed=seed, out=str(folder), resume=began)
                    break
            except Timeout:
                busy = True
            except ValueError as error:
                folder.mkdir(exist_ok=True)
                (folder / "failed.txt").write_text(f"{error}\n")
        else:
            if not busy:
                return
            time.sleep(5)


def stored(words: dict[str, Any], folder: Path) -> str:
    """The teacher's outputs for every epoch of a training by `words`."""
    import uhkd

    with FileLock(f"{folder}.lock"):
        asked = {k: words[k] for k in CACHE_WORDS if k in words}
        uhkd.cache(**asked, teacher=words["teacher"], views=words["epochs"], batch_size=256, out=str(folder))
    return str(folder)


def collect(plan: dict[str, Any], out: Path) -> None:
    """Write each regime's finished trainings as one JSON file."""
    (HERE / "balance").mkdir(exist_ok=True)
    for regime in plan["regimes"]:
        runs, shared = [], None
        for folder in sorted((out / regime).glob("*/seed-*/")):
            if not (folder / "result.json").is_file():
                continue
            result = json.loads((folder / "result.json").read_text())
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
            recipe = {k: v for k, v in recipe.items() if k not in OWN} | {"data": Path(str(recipe["data"])).stem}
            shared = shared or recipe
            differs = {k: v for k, v in recipe.items() if shared.get(k) != v}
            runs.append(
                {
                    "variant": folder.parent.name,
                    "seed": int(folder.name.removeprefix("seed-")),
                    "differs": differs,
                    "methods": result.get("methods", {}),
                    "teacher": result.get("teacher_metrics", {}),
                    "metrics": result["metrics"],
                    "environment": result["environment"],
                }
            )
        if runs:
            file = HERE / "balance" / f"{regime}.json"
            file.write_text(json.dumps({"regime": regime, "recipe": shared, "runs": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="*", default=[], metavar="NAME=WORD", help="where each data set of the file lies"
    )
    parser.add_argument("--plan", type=Path, default=HERE / "balance.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collect", action="store_true")
    asked = parser.parse_args()
    plan = yaml.safe_load(asked.plan.read_text())
    if asked.collect:
        collect(plan, asked.out)
    else:
        train(plan, dict(pair.split("=", 1) for pair in asked.data), asked.out)


if __name__ == "__main__":
    main()
