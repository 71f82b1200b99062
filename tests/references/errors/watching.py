"""Watching trainings, and telling loggers of them."""

from pathlib import Path
from unittest.mock import patch

from references.errors.case import Case
from references.errors.shelf import DIGITS, FINETUNE
from uhkd import finetune
from uhkd.training import loggers


def without_wandb() -> None:
    """As where `pip install uhkd` was all."""
    with patch.object(loggers, "find_spec", lambda name: None if name == "wandb" else object()):
        finetune(model="uhkd/resnet10", data="digits", log=("wandb",), out="new")


CASES = (
    Case(
        "watching a folder without runs",
        "watch runs",
        "runs is no run folder and contains none: expected a folder that finetune, distill or compare wrote, or one "
        "that contains such folders",
        make=lambda: Path("runs").mkdir(),
    ),
    Case(
        "watching a folder that does not exist",
        "watch nowhere",
        "no such folder: nowhere; give run folders, or folders that contain them",
    ),
    Case(
        "watching a folder with a misspelt name",
        "watch rusn",
        "no such folder: rusn; did you mean runs?",
        make=lambda: Path("runs").mkdir(),
    ),
    Case(
        "watching without a folder",
        "watch",
        "run: required but not given (run folder, or a folder of runs, such as a comparison)",
    ),
    Case("an interval that is too short", "watch runs --every 0", "every: expected a value >= 0.1, found '0'"),
    Case(
        "an unknown logger",
        f"{FINETUNE} {DIGITS} --log tensorbord",
        "log: expected tensorboard, wandb or mlflow, found 'tensorbord'; did you mean 'tensorboard'?",
    ),
    Case(
        "a logger whose package is missing",
        without_wandb,
        "log wandb: the package wandb is missing: pip install 'uhkd[wandb]'",
    ),
    Case(
        "a logger's folder that is a symbolic link",
        f"finetune --model uhkd/resnet10 --options channels=[4,4,8,8] --device cpu --precision fp32 --workers 0 --image-size 16 "
        f"--epochs 2 --batch-size 8 {DIGITS} --out stopped --resume --log tensorboard",
        "stopped/tensorboard is a link to another place, where uhkd would write and delete: put a folder there, or choose "
        "another --out",
        has=("stopped",),
        make=lambda: Path("stopped/tensorboard").symlink_to(Path("stopped")),
    ),
)
