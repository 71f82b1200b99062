"""results/balance/*.json -> the measured part of docs/balance.md (see render.py)."""

from statistics import fmean, stdev
from typing import Any

from uhkd.commands.comparing.tables import markdown
from uhkd.recipe import balance_settings

ABOUT = {
    "short-cnn": "few images, few epochs; ViT teacher, CNN student",
    "short-vit": "few images, few epochs; CNN teacher, ViT student",
    "near-cnn": "a long training, the teacher hardly better than the student alone; ViT teacher, CNN student",
    "far-vit": "a long training, the teacher far better than the student alone; CNN teacher, ViT student",
    "heart-cnn": "a long training, the teacher has memorised its training images; CNN teacher, CNN student",
    "packaged-cnn": "the packaged recipe `cifar100/32px/resnet-micro`; ViT teacher, CNN student",
    "photos-cnn-vit": "2,000 photographs of ten classes at 64 px; CNN teacher, ViT student",
    "photos-vit-cnn": "9,469 photographs of ten classes at 64 px; ViT teacher, CNN student",
    "few-cnn-vit": "300 photographs of ten classes at 64 px; CNN teacher, ViT student",
    "few-vit-cnn": "300 photographs of ten classes at 64 px; ViT teacher, CNN student",
}
COLUMNS = {
    "accuracy": "accuracy",
    "ece": "ECE",
    "gap": "confidence - accuracy",
    "ece_fitted": "ECE, one temperature fitted",
    "noise 0.05": "noise 0.05",
    "noise 0.1": "noise 0.1",
    "blur 1": "blur 1",
}
PARTS = {"val": "held-out images", "test": "test images"}


def balance(found: dict[str, dict[str, Any]]) -> str:
    """A table of each regime, best variant first."""
    return "\n\n".join(_regime(name, content) for name, content in found.items()) or "not yet run"


def _regime(name: str, content: dict[str, Any]) -> str:
    runs = content["runs"]
    variants: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        variants.setdefault(run["variant"], []).append(run)
    ordered = sorted(variants, key=lambda v: -fmean(run["judged"]["accuracy"] for run in variants[v]))
    rows = [["variant", "balance", "seeds", *COLUMNS.values()]]
    for variant in ordered:
        own = variants[variant]
        cells = [_cell([100 * run["judged"][key] for run in own]) for key in COLUMNS]
        rows.append([variant, _described(content["recipe"] | own[0]["recipe"]), str(len(own)), *cells])
    recipe = content["recipe"]
    accuracies = [run["teacher"]["accuracy"] for run in runs if run["teacher"].get("accuracy")]
    teacher = f"teacher {100 * accuracies[0]:.1f} %, " if accuracies else ""
    images = f"{recipe['train_limit']:,} images" if recipe.get("train_limit") else "all images"
    machines = (
        f"{e['gpu'] or str(e['cpu_cores']) + ' shared CPU cores'}; torch {e['versions']['torch']}"
        for e in content["environments"]
    )
    where = " / ".join(dict.fromkeys(machines))
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    what = f"{recipe['data']}, {images}, {recipe['epochs']} epochs, batch {recipe['batch_size']}, {recipe['optimizer']}"
    part, regime = PARTS[runs[0]["judged"]["part"]], name.removesuffix(".json")
    title = f"{regime}: {ABOUT[regime]}" if regime in ABOUT else regime
    return (
        f"### {title}\n\n{what}, student `{recipe['student']}`, {teacher}percent on {part} after the last "
        f"epoch; mean ± sd over seeds.\n\n{markdown(rows)}\n\n{where}; commits {commits}. File: `results/balance/{name}`."
    )


def _cell(values: list[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _described(recipe: dict[str, Any]) -> str:
    """The balance of a run, with the settings that are not the default."""
    name = recipe.get("balance") or "constant"
    if recipe["method"] == "scratch":
        return ""
    if name == "constant":
        return name
    # runs of before the bound had none
    usual = balance_settings(name, {}).model_dump()
    # settings that older runs do not have: nothing was corrected then
    chosen = {"bound": "none", "margin": usual.get("margin")} | recipe["balance_settings"]
    own = [
        f"{k}={chosen[k]:g}" if isinstance(v, float) else f"{k}={chosen[k]}" for k, v in usual.items() if chosen[k] != v
    ]
    return " ".join([name, *own])
