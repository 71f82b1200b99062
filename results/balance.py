"""Train the cells of results/balance.yaml and write what came out to results/balance/REGIME.json.

python results/balance.py --data cifar100=FILE [photos=FOLDER] --out runs/balance   # started twice: two processes share it
python results/balance.py --out runs/balance --collect   # run folders -> results/balance/

Killed and started again it repeats nothing, nor what is in results/balance already. Each training runs on one core; its teacher's
outputs are stored once a regime.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

HERE = Path(__file__).resolve().parent
CHANGES = ("clean", "noise 0.05", "noise 0.1", "blur 1")
CACHE_OPTIONS = ("data", "train_limit", "crop", "flip", "crop_scale")
OWN = {"out", "seed", "resume", "teacher_cache", "thumbnails", "log"}


def cells(plan: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(regime, variant, seed) of every training, in the order of the file, first seeds first."""
    listed = [(r, v, s) for r, variants in plan["cells"].items() for v, count in variants.items() for s in range(count)]
    return sorted(listed, key=lambda cell: cell[2])


def config_fields(plan: dict[str, Any], regime: str, variant: str, data: dict[str, str]) -> dict[str, Any]:
    """The recipe of a cell without seed and place."""
    options = {**plan["common"], **plan["regimes"][regime], **plan["variants"][variant]}
    return options | {"data": data[options["data"]]}


def train(plan: dict[str, Any], data: dict[str, str], out: Path) -> None:
    """Train every cell that no process has trained or is training."""
    import uhkd

    caches: dict[str, str] = {}
    collected = {regime: {(run["variant"], run["seed"]) for run in published(regime)} for regime in plan["cells"]}
    while True:
        busy = False
        for regime, variant, seed in cells(plan):
            if (variant, seed) in collected[regime]:
                continue
            options = config_fields(plan, regime, variant, data)
            live, part = options.pop("live", False), options.pop("part", "val")
            folder = out / regime / variant / f"seed-{seed}"
            if (folder / "judged.json").is_file() or (folder / "failed.txt").is_file():
                continue
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(f"{folder}.lock", timeout=0):
                    if (folder / "judged.json").is_file():
                        continue
                    if (folder / "result.json").is_file():
                        evaluate_run(folder, options["data"], part)
                        continue
                    if options["method"] == "scratch":
                        del options["teacher"]
                    elif not live:
                        options["teacher"] = str(teacher(plan, options["teacher"], data, out))
                        caches[regime] = caches.get(regime) or stored(options, out / regime / "cache")
                        options["teacher_cache"] = caches[regime]
                    began = (folder / "recipe.yaml").is_file()
                    uhkd.distill(**options, seed=seed, out=str(folder), resume=began)
                    evaluate_run(folder, options["data"], part)
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


def teacher(plan: dict[str, Any], name: str, data: dict[str, str], out: Path) -> Path:
    """The run folder of a teacher: that of a regime, or one of `teachers`, which is trained once."""
    import uhkd

    if name not in plan.get("teachers", {}):
        return Path(name)
    folder = out / "teachers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "result.json").is_file():
            options = {**plan["common"], **plan["teachers"][name]}
            options["data"] = data[options["data"]]
            uhkd.finetune(**options, out=str(folder), resume=(folder / "recipe.yaml").is_file())
    return folder


def evaluate_run(folder: Path, data: str, part: str) -> None:
    """Write judged.json: accuracy, calibration and robustness of a run's student on one part of the data.

    ece and gap are those of the logits as they are; ece_fitted is measured on every second image of the part after one
    temperature was fitted to the nll of the others.
    """
    import torch

    sys.path.insert(0, str(HERE))
    import why_probes

    from uhkd import load_run, open_data
    from uhkd.data import eval_loader
    from uhkd.evaluation.metrics import predict_logits, score
    from uhkd.training.inputs import image_size

    network, opened = load_run(folder), open_data(data)
    source = getattr(opened, part)
    size, device = image_size(opened, [network]), torch.device("cpu")
    found: dict[str, Any] = {"part": part}
    for name in CHANGES:
        change = why_probes.CHANGES[name]
        batches = (b._replace(image=change(b.image, b.index)) for b in eval_loader(source, size, batch_size=250))
        logits, labels = predict_logits(network, batches, device)
        assert labels is not None
        found[name] = score(logits, labels)["accuracy"]
        if name == "clean":
            found |= score(logits, labels)
            found["gap"] = (logits.softmax(1).amax(1).mean() - found["accuracy"]).item()
            fit, rest = (slice(0, None, 2), slice(1, None, 2))
            scales = torch.logspace(-1, 1.5, 200)
            losses = [torch.nn.functional.cross_entropy(logits[fit] / t, labels[fit]) for t in scales]
            best = scales[int(torch.stack(losses).argmin())]
            found["temperature"] = best.item()
            found["ece_fitted"] = score(logits[rest] / best, labels[rest])["ece"]
    (folder / "judged.json").write_text(json.dumps(found, indent=1) + "\n")


def stored(options: dict[str, Any], folder: Path) -> str:
    """The teacher's outputs for every epoch of a training by `options`."""
    import uhkd

    with FileLock(f"{folder}.lock"):
        arguments = {k: options[k] for k in CACHE_OPTIONS if k in options}
        uhkd.cache(**arguments, teacher=options["teacher"], views=options["epochs"], batch_size=256, out=str(folder))
    return str(folder)


def published(regime: str) -> list[dict[str, Any]]:
    """The trainings in results/balance/REGIME.json, each with its whole recipe and environment."""
    file = HERE / "balance" / f"{regime}.json"
    if not file.is_file():
        return []
    content = json.loads(file.read_text())
    return [
        run | {"recipe": content["recipe"] | run["recipe"], "environment": content["environments"][run["environment"]]}
        for run in content["runs"]
    ]


def collect(plan: dict[str, Any], out: Path) -> None:
    """Add each regime's finished trainings to its JSON file: what all share once, and what each has of its own."""
    (HERE / "balance").mkdir(exist_ok=True)
    for regime in plan["regimes"]:
        runs = {(run["variant"], run["seed"]): run for run in published(regime)}
        for folder in sorted((out / regime).glob("*/seed-*/")):
            if not (folder / "judged.json").is_file():
                continue
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
            recipe |= {
                "data": Path(str(recipe["data"])).stem,
                "teacher": recipe["teacher"] and Path(recipe["teacher"]).name,
            }
            result = json.loads((folder / "result.json").read_text())
            run = {
                "variant": folder.parent.name,
                "seed": int(folder.name.removeprefix("seed-")),
                "commit": result["environment"]["commit"],
                "environment": {k: v for k, v in result["environment"].items() if k not in ("command", "commit")},
                "recipe": {k: v for k, v in recipe.items() if k not in OWN},
                "methods": result.get("methods", {}),
                "teacher": result.get("teacher_metrics", {}),
                "metrics": result["metrics"],
                "judged": json.loads((folder / "judged.json").read_text()),
            }
            runs[run["variant"], run["seed"]] = run
        if not runs:
            continue
        recipes = [run["recipe"] for run in runs.values()]
        shared = {k: v for k, v in recipes[0].items() if all(recipe.get(k) == v for recipe in recipes)}
        environments: list[dict[str, Any]] = []
        for run in runs.values():
            environments += [] if run["environment"] in environments else [run["environment"]]
            run["environment"] = environments.index(run["environment"])
            run["recipe"] = {k: v for k, v in run["recipe"].items() if k not in shared}
        content = {
            "regime": regime,
            "recipe": shared,
            "environments": environments,
            "runs": [runs[key] for key in sorted(runs)],
        }
        (HERE / "balance" / f"{regime}.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=PATH", help="path of each data set of the file")
    parser.add_argument("--plan", type=Path, default=HERE / "balance.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collect", action="store_true")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.plan.read_text())
    if arguments.collect:
        collect(plan, arguments.out)
    else:
        train(plan, dict(pair.split("=", 1) for pair in arguments.data), arguments.out)


if __name__ == "__main__":
    main()
