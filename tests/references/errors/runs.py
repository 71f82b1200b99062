"""Run folders and their checkpoints."""

from pathlib import Path

from references.errors.case import Case
from references.errors.shelf import DIGITS, FINETUNE, NETWORK, TINY, write

TRAIN = f"{FINETUNE} {DIGITS}"
GO_ON = f"finetune --model {NETWORK} {TINY} {DIGITS} --epochs 2 --out stopped --resume"
STOPPED = {"has": ("stopped",)}


def damage(*names: str) -> None:
    """Cut files of every checkpoint short."""
    for folder in Path("stopped/checkpoints").glob("step-*"):
        for name in names:
            (folder / name).write_bytes((folder / name).read_bytes()[:-1])


CASES = (
    Case(
        "an existing run folder",
        f"{TRAIN} --out run",
        "run already exists and is not empty; it is a finished run (uhkd eval run): please choose another --out",
        has=("run",),
    ),
    Case(
        "the run folder of a stopped training",
        f"{TRAIN} --out stopped",
        "stopped already exists and is not empty; add --resume to resume it, or choose another --out",
        **STOPPED,
    ),
    Case(
        "resuming a finished run with other options",
        "finetune -c run --out run --resume --lr 0.1",
        "cannot resume run with another recipe: lr was …, now 0.1; to train its weights further by another recipe, start a new "
        "run: --out NEW --start run",
        has=("run", "images"),
    ),
    Case(
        "a folder with other files",
        f"{TRAIN} --out images",
        "images already exists and is not empty; please choose another --out",
        has=("images",),
    ),
    Case(
        "a file as the run folder",
        f"{TRAIN} --out notes",
        "notes is a file: expected a folder; choose another --out",
        make=lambda: write("notes", "hello"),
    ),
    Case(
        "a run folder below a file",
        f"{TRAIN} --out notes/run",
        "notes is a file: expected a folder; choose another --out",
        make=lambda: write("notes", "hello"),
    ),
    Case(
        "resuming in a folder that does not exist",
        f"{TRAIN} --resume",
        "nothing to resume in new: there is no recipe.yaml; leave out --resume",
    ),
    Case(
        "resuming in a folder with other files",
        f"{TRAIN} --out images --resume",
        "nothing to resume in images: there is no recipe.yaml; leave out --resume",
        has=("images",),
    ),
    Case(
        "resuming with another recipe",
        f"{GO_ON} --lr 0.1 --seed 3",
        "cannot resume stopped with another recipe: lr was 0.001, now 0.1, seed was 0, now 3; "
        "give the options as they were, or choose another --out",
        **STOPPED,
    ),
    Case(
        "resuming with other images",
        f"{GO_ON} --train-limit 30",
        "cannot resume stopped with another recipe: train_limit was 40, now 30; "
        "give the options as they were, or choose another --out",
        **STOPPED,
    ),
    Case(
        "resuming from damaged checkpoints",
        GO_ON,
        "no checkpoint in stopped/checkpoints can be used: step-10: tensors.safetensors differs from its "
        "checksum. Restore one from a backup, delete the folder and start again with --resume, or start "
        "another run with another --out",
        **STOPPED,
        make=lambda: damage("tensors.safetensors"),
    ),
    Case(
        "resuming from checkpoints without checksums",
        GO_ON,
        "no checkpoint in stopped/checkpoints can be used: step-10: …. Restore one from a backup, delete "
        "the folder and start again with --resume, or start another run with another --out",
        **STOPPED,
        make=lambda: [f.unlink() for f in Path("stopped").rglob("SHA256SUMS")],
    ),
    Case(
        "resuming with a damaged recipe",
        GO_ON,
        "stopped/recipe.yaml is damaged or was not written by uhkd: no YAML of plain data (…)",
        **STOPPED,
        make=lambda: write("stopped/recipe.yaml", "{"),
    ),
    Case(
        "resuming with a YAML tag that does not fit its value",
        GO_ON,
        "stopped/recipe.yaml is damaged or was not written by uhkd: no YAML of plain data (…)",
        **STOPPED,
        make=lambda: write("stopped/recipe.yaml", "flip: !!bool perhaps\n"),
    ),
    Case(
        "evaluating a run that is not finished",
        "eval stopped",
        "the run 'stopped' is not finished: run its command again with --resume",
        **STOPPED,
    ),
    Case(
        "a misspelt run folder as the network",
        "finetune --model ./rnu --data digits",
        "no such folder: ./rnu; did you mean run?",
        has=("run",),
    ),
    Case(
        "a misspelt run folder as the teacher, in a folder of runs",
        "distill --teacher runs/teachr --student uhkd/vit_micro --data digits",
        "teacher: no such folder: runs/teachr; did you mean runs/teacher?",
        make=lambda: write("runs/teacher/recipe.yaml", ""),
    ),
    Case(
        "a misspelt folder of runs",
        "distill --teacher run/teacher --student uhkd/vit_micro --data digits",
        "teacher: no such folder: run/teacher; did you mean runs/teacher?",
        make=lambda: write("runs/teacher/recipe.yaml", ""),
    ),
    Case(
        "a network of a library that does not exist",
        "finetune --model tim/resnet18 --data digits",
        "neither a folder nor a model is called 'tim/resnet18': did you mean timm/resnet18 or …? (`uhkd models` lists models; of "
        "the hub: transformers/OWNER/NAME)",
    ),
    Case(
        "a misspelt run folder in a report",
        "report rnu",
        "no such folder: rnu; did you mean run?",
        has=("run",),
    ),
    Case(
        "a recipe from a run folder, with that folder as output",
        "finetune -c run --out run",
        "run already exists and is not empty; it is a finished run (uhkd eval run): please choose another --out",
        has=("run",),
    ),
)
