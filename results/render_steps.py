"""results/steps/*.json -> the measured part of docs/steps.md (see render.py)."""

from statistics import fmean, stdev
from typing import Any

from uhkd.commands.comparing.tables import markdown
from uhkd.training.defaults import default_length

NETWORKS = {
    "cnn": "`uhkd/resnet10`, channels 16 to 128",
    "vit": "`uhkd/vit_micro`, patches of 8",
    "full": "`uhkd/resnet10` at 32 px",
}
STARTS = {"scratch": "random", "distilled": "random, distilled", "cnn100": "trained on CIFAR-100"}


def steps(found: dict[str, dict[str, Any]]) -> str:
    """A table of all trainings: network, start, images, then by accuracy."""
    blocks = []
    for name, content in found.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for run in content["runs"]:
            groups.setdefault(run["cell"], []).append(run)
        rows = sorted((_row(content["recipe"], runs) for runs in groups.values()), key=lambda row: row[0])
        environments = " / ".join(
            dict.fromkeys(
                f"{e['cpu_cores']} shared CPU cores, {e['threads']} thread a run; torch {e['versions']['torch']}"
                for e in content["environments"]
            )
        )
        commits = ", ".join(sorted({run["commit"] or "unknown" for run in content["runs"]}))
        head = ["network", "start", "images", "batch", "epochs", "warm-up", "lr", "steps", "accuracy (%)", ""]
        blocks.append(
            f"{markdown([head, *(row for _, row in rows)])}\n\n{environments}; commits {commits}. File: `results/steps/{name}`."
        )
    return "\n\n".join(blocks) or "not yet run"


def _row(shared: dict[str, Any], runs: list[dict[str, Any]]) -> tuple[tuple[Any, ...], list[str]]:
    """The sort key and the cells of the trainings of one cell, one a seed."""
    recipe, values = shared | runs[0]["recipe"], [100 * run["metrics"]["val_accuracy"] for run in runs]
    network, start, images = runs[0]["cell"].split()[:3]
    batch, epochs = recipe["batch_size"], recipe["epochs"]
    usual = default_length(int(images))
    near = batch == usual[0] and abs(epochs - usual[1]) <= 1 and not recipe["warmup_epochs"]
    notes = ["the default"] if near else []
    if (batch, epochs) == (min(128, int(images) // 4), 30):
        notes.append("30 epochs, batch 128 or a quarter of the images")
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    cells = [
        NETWORKS[network],
        STARTS[start],
        f"{int(images):,}",
        str(batch),
        str(epochs),
        f"{recipe['warmup_epochs']:g}",
        f"{recipe['lr']:g}",
        f"{runs[0]['metrics']['step']:,}",
        f"{fmean(values):.1f}{spread}",
        "; ".join(notes),
    ]
    return (network, start, int(images), -fmean(values)), cells
