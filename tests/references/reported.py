"""Run folders written by hand for the report, and a browser to look at it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uhkd.runs import RunFolder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NASTY = "<script>alert(1)</script>\"'&\u202e\x1b[31m"


def write_run(
    path: Path, *, method: str = "uhkd", seed: int = 0, accuracy: float = 0.5, finished: bool = True, **changes: Any
) -> Path:
    """A run folder of 40 validation images in 4 classes and 3 evaluations, all that a run of today records but the images.

    changes: words of the recipe.
    """
    folder, rng = RunFolder(path), np.random.default_rng(seed)
    path.mkdir(parents=True)
    recipe = {
        "data": "birds",
        "student": "timm/tiny",
        "teacher": None if method == "scratch" else "timm/huge",
        "method": method,
    }
    recipe |= {"seed": seed, "epochs": 3, "out": str(path)} | changes
    folder.recipe.write_text(
        "".join(f"{k}: {'null' if v is None else repr(v)}\n" for k, v in recipe.items()), encoding="utf-8"
    )
    folder.write_json(
        "environment.json", {"python": "3.11.2", "versions": {"torch": "2.9"}, "gpu": None, "cpu_cores": 2}
    )
    rows = [
        {
            "step": 10 * e,
            "epoch": e,
            "loss": 3.0 / e,
            "ce": 2.0 / e,
            f"{method}.features": 1.0 / e,
            "val_accuracy": accuracy * e / 3,
        }
        | {
            "val_top5": 1.0,
            "val_nll": 2 / e,
            "val_ece": 0.05,
            "seconds": 2.0 * e,
            "images_per_second": 99.0,
            "data_wait": 0.02,
        }
        for e in (1, 2, 3)
    ]
    folder.write_metrics(rows if finished else rows[:2])
    labels = np.arange(40) % 4
    wrong = rng.permutation(40)[: round(40 * (1 - accuracy))]
    said = labels.copy()
    said[wrong] = (said[wrong] + 1) % 4
    arrays = {
        "steps": np.array([10, 20, 30]),
        "val_label": labels,
        "val_prediction": said,
    }
    arrays |= {"val_confidence": np.full(40, 0.7, np.float16)}
    arrays |= {f"student_spectrum_{i}": rng.random((3, 4)) for i in range(2)} | {
        f"start_spectrum_{i}": rng.random(4) for i in range(2)
    }
    if method != "scratch":
        teacher = labels.copy()
        teacher[:4] = (teacher[:4] + 1) % 4
        arrays |= {"teacher_prediction": teacher, "teacher_confidence": np.full(40, 0.9, np.float16)}
        arrays |= {f"teacher_spectrum_{i}": rng.random(4) for i in range(2)}
        arrays |= {"cka_start": rng.random((2, 2)), "cka_end": rng.random((2, 2))}
        arrays |= {f"error_{i}": rng.random((3, 4)) for i in range(2)}
        arrays |= {f"frequency_{i}": np.array([0.0, 1.0, 1.0, 1.41]) for i in range(2)}
    folder.write_arrays(arrays if finished else {k: arrays[k] for k in ("steps", "student_spectrum_0")})
    if finished:
        folder.write_json("card.json", {"name": "timm/tiny", "classes": ["ant", "bee", "cat", "dog"]})
        sizes = {"student": {"parameters": 1_500_000, "bytes": 6_000_000, "flops": 2_000_000}}
        sizes |= (
            {"teacher": {"parameters": 9_000_000, "bytes": 36_000_000, "flops": 5e9}} if method != "scratch" else {}
        )
        result = {
            "metrics": rows[-1],
            "parameters": 1_500_000,
            "data": "birds",
            "data_fingerprint": "f00d",
            "sizes": sizes,
        }
        result |= {"teacher_metrics": {"accuracy": 0.9, "top5": 1.0, "ece": 0.04}} if method != "scratch" else {}
        folder.write_json("latency.json", {"student_ms": 1.5} | ({"teacher_ms": 7.0} if method != "scratch" else {}))
        folder.write_json("result.json", result)
    return path


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium that is installed already; without one the test is skipped, or fails by UHKD_REQUIRE_BROWSER=1."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        said = f"no browser on this machine (looked for {', '.join(BROWSERS)})"
        if os.environ.get("UHKD_REQUIRE_BROWSER") == "1":
            pytest.fail(said)
        pytest.skip(said)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
