"""`demo`: distillation of a CNN into a ViT and an MLP on handwritten digits, compared with training without a teacher."""

import time
from pathlib import Path
from typing import Any

from uhkd.commands.compare import compare
from uhkd.console import log_info
from uhkd.data import usable_cores
from uhkd.recipe import build
from uhkd.recipe.arguments import DemoArguments
from uhkd.reporting.plots import draw_curves, draw_spectra
from uhkd.runs import RunFolder

STUDENTS = ("vit", "mlp")
METHODS = ("scratch", "kd", "twin_a", "uhkd")


def demo(arguments: DemoArguments | None = None, **options: Any) -> dict[str, Any]:
    """Train the teacher, then every student by every method and seed; write table, curves and spectra to one folder.

    A comparison of the packaged recipes digits/*, one process per core. All accuracies are on the test split after the last
    epoch. Returns the content of compare.json.
    """
    arguments = build(DemoArguments, options) if arguments is None else arguments
    out, began = new_folder(Path(arguments.out)), time.monotonic()
    log_info(f"demo on 1,797 real images of handwritten digits; results go to {out}")
    options = comparison(arguments, out)
    summary, seeds = compare(**options), options["seeds"]
    for student in STUDENTS:
        runs = {m: [RunFolder(out / student / m / f"seed-{seed}") for seed in range(seeds)] for m in METHODS}
        draw_curves(runs, out / f"curves-{student}.png")
        draw_spectra({m: runs[m][0] for m in METHODS if m != "scratch"}, out / f"spectra-{student}.png")
    first = "report.html" if (out / "report.html").is_file() else "compare.md"
    log_info(f"tables, plots and runs are in {out}: begin with {first} ({time.monotonic() - began:.0f} s)")
    return summary | {"out": str(out)}


def comparison(arguments: DemoArguments, out: Path) -> dict[str, Any]:
    """Return the options of `compare` for the demo."""
    seeds, epochs = (1, {"epochs": 2}) if arguments.quick else (arguments.seeds, {})
    return {
        "pairs": [f"digits/{student}" for student in STUDENTS],
        "teachers": ["digits/teacher"],
        "methods": METHODS,
        "seeds": seeds,
        "overrides": epochs | ({"allow_weak_teacher": True} if arguments.quick else {}),
        "teacher_overrides": epochs,
        "split": "test",
        "jobs": min(usable_cores(), 8),
        "title": "Handwritten digits",
        "out": str(out),
    }


def new_folder(wanted: Path) -> Path:
    """Return `wanted`, or the first free of wanted-2, wanted-3, ..., so that an earlier demo is never changed."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
