"""`export`: write a run's network in formats of other programs, check each on real images, and write its model card."""

import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from uhkd import export as forms
from uhkd.console import escape, first_line, listed, log_info, print_table
from uhkd.data import DataSplits, ImageSource, Split, eval_loader
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import median_milliseconds
from uhkd.export.card import card_text
from uhkd.export.snippets import local_location, open_expression
from uhkd.features import FeatureExtractor
from uhkd.recipe import build
from uhkd.recipe.arguments import ExportArguments, ExportOptions, Form
from uhkd.runs import check_place, processor, write_atomically
from uhkd.training.oom import MANY_IMAGES, memory_advice
from uhkd.training.run_evaluation import images_of, open_run

# share of the largest logit: above the rounding of float32 in another order; wrong normalisation gives far more
_TOLERANCE = 1e-3
# the same for 8-bit integers, between one image alone and in a batch, where a value may round the other way
_INT8_TOLERANCE = 5e-2
_BATCH = 64


@memory_advice(MANY_IMAGES)
def export(arguments: ExportArguments | None = None, **options: Any) -> dict[Form, dict[str, Any]]:
    """Write a run's network in each requested form and return, by form, the `path` to open and what was measured.

    Each form is opened again with the library that other programs would use. Its outputs for the same images, alone and as a
    batch, are compared with PyTorch's: `differs` (largest difference, as a share of the largest logit), `agrees` (share of equal
    predictions; None without classes), `mb` (file size), `ms` (time for one image on this machine), `format` (versions of the
    format, as text), `temperature` (by which the logits were divided). The quantised forms are checked on all evaluation images
    instead: `accuracy_before` and `accuracy` (fractions), `images` and `calibrated` (numbers of evaluation and calibration
    images).

    Raises:
        UhkdError: no run folder, a form that does not support this network, a missing package, an output folder that is not
            empty, outputs that differ from PyTorch's, or quantised forms that lose too much accuracy.
    """
    arguments = arguments or build(ExportArguments, options)
    if not arguments.to:
        raise UhkdError(f"to: expected one form or more ({', '.join(forms.FORMS)}), found none")
    network, _ = open_run(arguments.run, "cpu")
    out = export_folder(arguments)
    rows = export_forms(arguments.run, network, arguments.to, arguments, out)
    for form, row in rows.items():
        here = local_location(form, "." if row["path"].is_dir() else row["path"].name)
        card = card_text(arguments.run, network, {form: here}, sentences({form: row}), temperature=row["temperature"])
        write_atomically(out / form / "README.md", card)
        log_info(f"{form}: {open_expression(form, local_location(form, row['path']))}")
    return rows


def export_folder(arguments: ExportArguments) -> Path:
    """Return the folder that contains one subfolder per form.

    Raises:
        UhkdError: the path is a file, or the subfolder of a form is not empty.
    """
    out = Path(arguments.out) if arguments.out else Path(arguments.run) / "export"
    check_place(out)
    taken = [str(out / form) for form in arguments.to if (out / form).exists() and any((out / form).iterdir())]
    if taken:
        raise UhkdError(f"{', '.join(taken)} already exists and is not empty; delete it, or choose another --out")
    return out


def check_forms(to: Sequence[Form], network: FeatureExtractor, options: ExportOptions) -> forms.ProgramOptions:
    """Return the options of programs after checking them, and that the network can be exported to every form.

    Raises:
        UhkdError: as `uhkd.export.check`, or an opset without a form that has one.
    """
    program = forms.ProgramOptions(options.opset, options.dynamic_size)
    if options.opset is not None and not {"onnx", "onnx-int8"} & set(to):
        raise UhkdError(f"--opset is for onnx and onnx-int8, and --to has {listed(to)}: remove --opset, or add onnx")
    for form in to:
        forms.check(form, network, program)
    return program


def check_comparable(to: Iterable[Form], data: DataSplits, part: str, evaluation: ImageSource) -> None:
    """Check that the accuracy of quantised forms can be measured.

    Raises:
        UhkdError: the images have no labels.
    """
    if set(to) & set(forms.QUANTIZED) and evaluation.labels is None:
        raise UhkdError(
            f"int8 is checked by its accuracy, and the {part} images of {data.name} have no labels; name others with --data"
        )


def export_forms(
    run: str, network: FeatureExtractor, to: Iterable[Form], options: ExportOptions, out: Path
) -> dict[Form, dict[str, Any]]:
    """Write forms into subfolders of `out`, check and measure each, and print the table; see `export`."""
    to = tuple(dict.fromkeys(to))
    temperature = forms.apply_temperature(network, raw=options.raw_logits)
    program = check_forms(to, network, options)
    data, part, evaluation = images_of(run, network, options.data, options=options)
    check_comparable(to, data, part, evaluation)
    load = partial(eval_loader, size=network.input_size, resize=data.resize)
    few = next(iter(load(_spread(evaluation, options.images), batch_size=options.images))).image
    calibration = _spread(data.train, options.calibrate)
    original = partial(forms.calibrated_logits, network)
    expected = _predict_checked("PyTorch", original, few, _TOLERANCE)
    rows: dict[Form, dict[str, Any]] = {}
    for form in to:
        try:
            batches = (batch.image for batch in load(calibration, batch_size=_BATCH))
            path = forms.write(form, network, out / form, batches, program)
            predict = forms.reopen(form, path)
            if form in forms.QUANTIZED:
                _predict_checked(form, predict, few, _INT8_TOLERANCE)
                loader = load(evaluation, batch_size=_BATCH)
                measured = _compare_accuracy(form, original, predict, loader, len(calibration), options.max_drop)
            else:
                measured = _compare_outputs(form, path, predict, few, expected)
                if program.dynamic_size:
                    _check_other_size(form, network, predict, few)
        except BaseException:  # a folder that is not empty would refuse the next export
            shutil.rmtree(out / form, ignore_errors=True)
            raise
        if network.shapes.logits is None:
            measured["agrees"] = None
        written = {"path": path, "format": forms.describe(form, path, program), "temperature": temperature}
        mb = sum(file.stat().st_size for file in (out / form).iterdir()) / 1e6
        rows[form] = written | measured | {"mb": mb, "ms": _milliseconds(predict, few)}
    title = f"{network.config.name} on {len(few)} {part} images of {data.name}; ms on {processor()}"
    mb = sum(tensor.nbytes for tensor in network.module.state_dict().values()) / 1e6
    print_table(_table(title, mb, _milliseconds(original, few), rows))
    if temperature != 1:
        log_info(f"logits divided by the temperature of the run, {temperature:.3g} (--raw-logits leaves it out)")
    for form, sentence in sentences(rows).items():
        log_info(f"{form}: {sentence}")
    return rows


def _table(title: str, mb: float, ms: float, rows: dict[Form, dict[str, Any]]) -> Table:
    """Return a table with a row for PyTorch and one per form; with a column of accuracies if some were measured."""
    before = [f"{row['accuracy_before']:.2%}" for row in rows.values() if "accuracy" in row][:1]
    table = Table("form", "MB", "differs", "agrees", *["accuracy" for _ in before], "ms", title=escape(title))
    table.add_row("PyTorch", f"{mb:.2f}", "", "", *before, f"{ms:.2f}")
    for form, row in rows.items():
        agrees = "" if row["agrees"] is None else f"{row['agrees']:.1%}"
        accuracy = [f"{row['accuracy']:.2%}" if "accuracy" in row else "" for _ in before]
        table.add_row(form, f"{row['mb']:.2f}", f"{row['differs']:.1e}", agrees, *accuracy, f"{row['ms']:.2f}")
    return table


def sentences(rows: dict[Form, dict[str, Any]]) -> dict[Form, str]:
    """Return, for forms that have them, sentences about the file format and the accuracy of quantised forms."""
    accuracy: dict[Form, str] = {
        form: f"Accuracy {row['accuracy_before']:.2%} before, {row['accuracy']:.2%} in 8-bit integers "
        f"({100 * (row['accuracy'] - row['accuracy_before']):+.2f} points) on {row['images']} evaluation images; "
        f"{row['agrees']:.1%} of the predictions are equal. Calibrated on {row['calibrated']} training images."
        for form, row in rows.items()
        if "accuracy" in row
    }
    found: dict[Form, str] = {form: f"{row['format']} {accuracy.get(form, '')}".strip() for form, row in rows.items()}
    return {form: text for form, text in found.items() if text}


@torch.no_grad()
def _check_other_size(form: str, network: FeatureExtractor, predict: forms.Predictor, images: Tensor) -> None:
    """Raise UhkdError if two images of another height and width cannot be processed, or give other outputs than PyTorch."""
    height, width = network.input_size
    images = torch.nn.functional.interpolate(images[:2], (2 * height, 3 * width), mode="bilinear")
    expected = forms.ExportModule(network)(images)
    found = f"{form} with --dynamic-size, and images of {2 * height} x {3 * width} pixels"
    try:
        outputs = predict(images).float()
    except Exception as error:  # each library has its own; torch fixes sizes where a map has 1 x 1 pixel
        raise UhkdError(
            f"{found}: the network allows no variable size ({first_line(error)[:200]}): leave out --dynamic-size"
        ) from error
    if not (difference := _difference(outputs, expected)) <= _TOLERANCE:
        raise UhkdError(
            f"{found}: outputs differ from PyTorch's by {difference:.1%} of the largest logit: leave out --dynamic-size"
        )


def _compare_outputs(
    form: str, path: Path, predict: forms.Predictor, images: Tensor, expected: Tensor
) -> dict[str, Any]:
    outputs = _predict_checked(form, predict, images, _TOLERANCE)
    difference = _difference(outputs, expected)
    if not difference <= _TOLERANCE:  # also true for NaN
        raise UhkdError(
            f"{path} gives other outputs than PyTorch: its logits differ by up to {difference:.1%} of the largest; it was "
            "deleted, please report this with the network's name"
        )
    return {"differs": difference, "agrees": float((outputs.argmax(1) == expected.argmax(1)).float().mean())}


@torch.no_grad()
def _compare_accuracy(
    form: str,
    original: forms.Predictor,
    predict: forms.Predictor,
    loader: Iterable[Any],
    calibrated: int,
    max_drop: float,
) -> dict[str, Any]:
    """Compare accuracy and predictions of the original and the quantised network on labelled batches."""
    results = [(original(batch.image).float(), predict(batch.image).float(), batch.label) for batch in loader]
    before, after, labels = (torch.cat(parts) for parts in zip(*results, strict=True))
    accuracy_before, accuracy = (float((x.argmax(1) == labels).double().mean()) for x in (before, after))
    drop = 100 * (accuracy_before - accuracy)
    if drop > max_drop:
        raise UhkdError(
            f"{form}: accuracy falls by {drop:.2f} points, from {accuracy_before:.2%} to {accuracy:.2%} on {len(labels)} "
            f"images, --max-drop allows {max_drop:g}; try another --calibrate (now {calibrated} images), another form, or a "
            "larger --max-drop"
        )
    return {
        "differs": _difference(after, before),
        "agrees": float((before.argmax(1) == after.argmax(1)).double().mean()),
        "accuracy_before": accuracy_before,
        "accuracy": accuracy,
        "images": len(labels),
        "calibrated": calibrated,
    }


def _difference(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest logit."""
    return float((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@torch.no_grad()
def _predict_checked(form: str, predict: forms.Predictor, images: Tensor, tolerance: float) -> Tensor:
    """Return the outputs of a batch of images (B, 3, H, W).

    Raises:
        UhkdError: the first or last image alone gives another output than in the batch.
    """
    outputs = predict(images).float()
    for i in (0, len(images) - 1):
        alone = predict(images[i : i + 1]).float()[0]
        if not torch.allclose(alone, outputs[i], rtol=tolerance, atol=tolerance * float(outputs.abs().max())):
            raise UhkdError(
                f"{form} gives another output for an image in a batch than alone: a network must process each image "
                "independently (also in eval mode); choose another form, or another network"
            )
    return outputs


@torch.no_grad()
def _milliseconds(predict: forms.Predictor, images: Tensor) -> float:
    """Return the median time for one image, in ms."""
    return median_milliseconds(lambda: predict(images[:1]))


def _spread(source: ImageSource, count: int) -> ImageSource:
    """Return `count` images at equal distances, because folders are ordered by class."""
    return Split(source, np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)))
