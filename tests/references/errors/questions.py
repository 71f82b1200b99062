"""Asking a trained network: eval, predict, inspect."""

import contextlib
import io
from pathlib import Path

from references.errors.case import Case
from references.errors.shelf import pictures, write
from uhkd import predict


def failed() -> str:
    """What predict says after the predictions, with exit code 1."""
    write("notes.txt", "hello")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        result = predict(run="run", images=["notes.txt", "images/ant/0.png"], device="cpu")
    assert (list(result), result.exit_code) == (["images/ant/0.png"], 1)
    return said.getvalue()[said.getvalue().index("uhkd predict") :].removesuffix("\n")


RUN = {"has": ("run",)}
INSPECT = "inspect --teacher uhkd/resnet10 --image-size 16"

CASES = (
    Case(
        "a run that does not exist",
        "eval runs/mine",
        "no such folder: runs/mine; give a folder that finetune or distill wrote",
    ),
    Case(
        "a misspelt run",
        "eval rnu",
        "no such folder: rnu; did you mean run?",
        **RUN,
    ),
    Case(
        "a folder that is not a run",
        "eval images",
        "'images' is no run folder of uhkd: it lacks card.json or model.safetensors; give a folder that "
        "finetune or distill wrote",
        has=("images",),
    ),
    Case(
        "images of classes that the network does not have",
        "eval run --data images",
        "images has class folders that are not among the classes expected here: wasp; expected only: ant, bee, cat",
        **RUN,
        make=lambda: pictures("images", ("bee", "wasp")),
    ),
    Case(
        "data with other classes",
        "eval run --data digits",
        "digits: its classes are not those of the network ('0' where 'ant' was expected)",
        **RUN,
    ),
    Case(
        "data that has moved", "eval run", "data images does not exist; give a path, or one of: digits, cifar100", **RUN
    ),
    Case(
        "a test split that does not exist",
        "eval run --data images --split test",
        "data images has no test split; use --split val",
        has=("run", "images"),
    ),
    Case(
        "a probe on the images that it is fitted on",
        "eval run --split all --probe knn",
        "a probe is fitted on the training split: measure it with --split val or test, not all",
        **RUN,
    ),
    Case(
        "an image that does not exist",
        "predict run bee.png",
        "no such file or folder: bee.png; give image files, or folders of them",
        **RUN,
    ),
    Case(
        "the address of an image",
        "predict run https://example.org/bee.png",
        "https://example.org/bee.png is an address: download the image and give the file",
        **RUN,
    ),
    Case(
        "an image with a misspelt name",
        "predict run image/ant/0.png",
        "no such file or folder: image/ant/0.png; did you mean images/ant/0.png?",
        has=("run", "images"),
    ),
    Case(
        "a folder without images",
        "predict run empty",
        "no images in empty; other files: none",
        **RUN,
        make=lambda: Path("empty").mkdir(),
    ),
    Case(
        "a file that is not an image",
        failed,
        "uhkd predict: 1 file without prediction:\n  notes.txt: cannot be decoded (its content is of no image format "
        "that can be read)",
        has=("run", "images"),
        refused=False,
    ),
    Case(
        "no images",
        "predict run",
        "images: required but not given (image files, or folders of them at any depth)",
        **RUN,
    ),
    Case(
        "a report without runs",
        "report",
        "runs: required but not given (run folders, or folders that contain runs)",
    ),
    Case(
        "a report of a folder that does not exist",
        "report runs/mine",
        "no such folder: runs/mine; give run folders, or folders that contain them",
    ),
    Case(
        "a report of a folder without runs",
        "report images",
        "no run in images: expected a folder that finetune, distill, compare or demo wrote (with recipe.yaml)",
        has=("images",),
    ),
    Case(
        "an existing file that is not a report",
        "report run",
        "run/report.html exists and is not a report of uhkd; delete it, or choose another --out",
        **RUN,
        make=lambda: write("run/report.html", "hello"),
    ),
    Case(
        "a report in a folder that is a file",
        "report run --out notes.txt/report.html",
        "notes.txt is a file: expected a folder; choose another --out",
        **RUN,
        make=lambda: write("notes.txt", "hello"),
    ),
    Case(
        "inspecting an unknown method",
        f"{INSPECT} --student uhkd/vit_micro --method uhk",
        "unknown method 'uhk'; did you mean 'uhkd'? (known: scratch, kd, …)",
    ),
    Case(
        "inspecting with parts and columns of no data",
        f"{INSPECT} --student uhkd/vit_micro --train-dir a --label-column b",
        "2 problems:\n  - train_dir: needs data, and none is given (--data)\n"
        "  - label_column: needs data, and none is given (--data)",
    ),
    Case(
        "inspecting with a column that does not exist",
        f"{INSPECT} --student uhkd/vit_micro --data labels.csv --image-column photo",
        "labels.csv has no column photo: choose one of image, label with --image-column",
        make=lambda: write("labels.csv", "image,label\nimages/ant/0.png,ant"),
    ),
    Case(
        "inspecting an impossible student",
        f"{INSPECT} --student uhkd/vit_micro --student-options embed_dim=97",
        "uhkd/vit_micro cannot be built for images of 16x16 px: …",
    ),
)
