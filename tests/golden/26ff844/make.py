"""How the files beside this one were made, by commit 26ff844 (they are not made anew: they show what that version wrote).

    PYTHONPATH=CHECKOUT/src python make.py EMPTY_FOLDER

A teacher, a student, a cache, an interrupted training and a comparison; digests.json has what the uninterrupted training, and one
by the cache, come to. Pictures and pages are left out, and paths are those from EMPTY_FOLDER.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import uhkd  # noqa: E402
from golden import trainings as golden  # noqa: E402

TINY: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, "data": "digits", "image_size": 16}
TINY |= {"train_limit": 40, "batch_size": 10, "epochs": 2}
CNN: dict[str, Any] = {"model": "uhkd/resnet10", "options": {"channels": [4, 4, 8, 8]}}
VIT: dict[str, Any] = {"student": "uhkd/vit_micro", "student_options": {"embed_dim": 8, "depth": 3, "num_heads": 2}}
STUDENT = TINY | VIT | {"teacher": "teacher", "allow_weak_teacher": True}
INTERRUPTED = STUDENT | {"mixup": 0.3, "ema_decay": 0.8, "method": "uhkd+crd", "settings": {"crd.dim": 8}}
BY_CACHE = TINY | VIT | {"teacher_cache": "cache", "seed": 3}
LEFT_OUT = (".png", ".html", ".tex", ".lock")
ASIDE = {"by-cache", "whole", "logs", "locks", "plan"}  # folders without a reader


def main(folder: Path) -> None:
    """Make everything in an empty folder."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    uhkd.finetune(**TINY | CNN | {"train_limit": 300, "epochs": 3, "lr": 0.02}, out="teacher")
    uhkd.distill(**STUDENT, weights_schedule="cosine", out="student")
    words = {k: v for k, v in TINY.items() if k not in ("epochs", "image_size")}
    uhkd.cache(**words, teacher="teacher", views=2, seed=3, allow_weak_teacher=True, out="cache")
    stored = golden.of_run(uhkd.distill(**BY_CACHE, out="by-cache").run.path)
    whole = golden.of_run(uhkd.distill(**INTERRUPTED, out="whole").run.path)
    with golden.stopped_after(6):
        uhkd.distill(**INTERRUPTED, out="interrupted")
    Path("pair.yaml").write_text(yaml.safe_dump(STUDENT), encoding="utf-8")
    uhkd.compare(pairs=("pair.yaml",), methods=("scratch", "kd"), seeds=1, out="comparison")
    content = {"conditions": golden.conditions(), "interrupted": whole, "cache": stored}
    Path("digests.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        no_picture = path.name == "thumbnails.jpg" and inside[0] != "student"
        if path.is_file() and (no_picture or path.suffix in LEFT_OUT or path.name in LEFT_OUT or set(inside) & ASIDE):
            path.unlink()
        elif path.suffix in (".json", ".yaml", ".csv", ".md", ".txt"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(f"{folder}/", ""), encoding="utf-8")
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
