"""`export`: a run's network for other programs, checked on real images, with a model card beside it."""

import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from uhkd import export as forms
from uhkd.commands.judging import images_of, open_run
from uhkd.console import escape, log_info, print_table
from uhkd.data import DataSplits, ImageSource, Split, eval_loader
from uhkd.errors import UhkdError
from uhkd.export.card import card_text
from uhkd.export.snippets import here, opened
from uhkd.features import FeatureExtractor
from uhkd.recipe import build
from uhkd.recipe.arguments import ExportArguments, ExportCheckOptions, Form
from uhkd.runs import check_place, write_atomically

# of the largest logit: what other orders of adding up make of float32, with room; a wrong normalisation makes far more
_TOLERANCE = 1e-3
# of 8-bit numbers, between one image alone and the same in a batch: a rounding that falls to the other side, with room
_ROUNDING = 5e-2
_REPEATS = 30
_BATCH = 64


def export(arguments: ExportArguments | None = None, **options: Any) -> dict[Form, dict[str, Any]]:
    """Write a run's network in each form asked for and return, by form, the `path` to be opened and what was measured.

    Every form is opened again by the library that others would use, and asked the same images as PyTorch, one by one and all at
    once: `differs` (largest difference, of the largest logit), `agrees` (share of equal answers; None without classes), `mb`,
    `ms` (one image on this machine). Forms of 8-bit integers are judged on all evaluation images instead: `accuracy_before` and
    `accuracy` (fractions), `calibrated` (images).

    Raises:
        UhkdError: for a folder that is no run, a form that cannot hold this network, a missing package, a place that is
            taken, a form that answers otherwise than PyTorch, or 8-bit integers that lose too much accuracy.
    """
    arguments = arguments or build(ExportArguments, options)
    if not arguments.to:
        raise UhkdError(f"to: expected one form or more ({', '.join(forms.FORMS)}), found none")
    network, _ = open_run(arguments.run, "cpu")
    out = export_folder(arguments)
    found = export_forms(arguments.run, network, arguments.to, arguments, out)
    for form, row in found.items():
        measured: dict[Form, str] = {form: sentence(row)} if "accuracy" in row else {}
        place = "." if row["path"].is_dir() else row["path"].name
        write_atomically(
            out / form / "README.md", card_text(arguments.run, network, {form: here(form, place)}, measured)
        )
        log_info(f"{form}: {opened(form, here(form, row['path']))}")
    return found


def export_folder(arguments: ExportArguments) -> Path:
    """The folder that the forms go into.

    Raises:
        UhkdError: when it cannot be a folder, or a form is there already.
    """
    out = Path(arguments.out) if arguments.out else Path(arguments.run) / "export"
    check_place(out)
    taken = [str(out / form) for form in arguments.to if (out / form).exists() and any((out / form).iterdir())]
    if taken:
        raise UhkdError(f"{', '.join(taken)} already exists and is not empty; delete it, or choose another --out")
    return out


@dataclass(frozen=True)
class _Images:
    """What forms are asked: some images at once, and all evaluation and the calibrating ones in batches."""

    few: Tensor
    evaluation: ImageSource
    calibration: ImageSource
    size: tuple[int, int]

    def all(self) -> Iterator[Any]:
        yield from eval_loader(self.evaluation, self.size, batch_size=_BATCH)

    def calibrating(self) -> Iterator[Tensor]:
        yield from (batch.image for batch in eval_loader(self.calibration, self.size, batch_size=_BATCH))


def check_comparable(to: Iterable[Form], data: DataSplits, part: str, evaluation: ImageSource) -> None:
    """See that forms of 8-bit integers can be judged.

    Raises:
        UhkdError: for images without labels.
    """
    if set(to) & set(forms.QUANTIZED) and evaluation.labels is None:
        raise UhkdError(
            f"int8 is judged by accuracy, and the {part} images of {data.name} have no labels; name others with --data"
        )


def export_forms(
    run: str, network: FeatureExtractor, to: Iterable[Form], options: ExportCheckOptions, out: Path
) -> dict[Form, dict[str, Any]]:
    """Write forms below `out`, check and measure each, and show the table; see `export`."""
    to = tuple(dict.fromkeys(to))
    for form in to:
        forms.check(form, network)
    data, part, evaluation = images_of(run, network, options.data)
    check_comparable(to, data, part, evaluation)
    few = next(
        iter(eval_loader(_spread(evaluation, options.images), network.input_size, batch_size=options.images))
    ).image
    images = _Images(few, evaluation, _spread(data.train, options.calibrate), network.input_size)
    expected = _outputs("PyTorch", network.plain, few, _TOLERANCE)
    own = f"{_bytes_of(network) / 1e6:.2f}", f"{_milliseconds(network.plain, few):.2f}"
    found: dict[Form, dict[str, Any]] = {}
    for form in to:
        try:
            path = forms.write(form, network, out / form, images.calibrating())
            answer = forms.reopen(form, path)
            exact = form not in forms.QUANTIZED
            row = (
                _exact(form, network, path, answer, few, expected)
                if exact
                else _accuracy_of(form, network, answer, images, options.max_drop)
            )
        except ValueError:
            shutil.rmtree(out / form, ignore_errors=True)
            raise
        row |= {
            "mb": sum(file.stat().st_size for file in (out / form).iterdir()) / 1e6,
            "ms": _milliseconds(answer, few),
        }
        found[form] = {"path": path} | row
    title = f"{network.card.name} on {len(few)} {part} images of {data.name}"
    print_table(_table(title, own, found))
    for form, row in found.items():
        if "accuracy" in row:
            log_info(f"{form}: {sentence(row)}")
    return found


def _table(title: str, own: tuple[str, str], found: dict[Form, dict[str, Any]]) -> Table:
    """A row a form below PyTorch's own; a column of accuracies where some were measured."""
    before = next((f"{row['accuracy_before']:.2%}" for row in found.values() if "accuracy" in row), None)
    table = Table("form", "MB", "differs", "agrees", *(["accuracy"] * (before is not None)), "ms", title=escape(title))
    table.add_row("PyTorch", own[0], "", "", *([before] if before else []), own[1])
    for form, row in found.items():
        agrees = "" if row["agrees"] is None else f"{row['agrees']:.1%}"
        accuracy = [f"{row['accuracy']:.2%}" if "accuracy" in row else ""] * (before is not None)
        table.add_row(form, f"{row['mb']:.2f}", f"{row['differs']:.1e}", agrees, *accuracy, f"{row['ms']:.2f}")
    return table


def sentence(row: dict[str, Any]) -> str:
    """What 8-bit integers cost, in words."""
    before, after = row["accuracy_before"], row["accuracy"]
    return (
        f"Accuracy {before:.2%} before, {after:.2%} in 8-bit integers ({100 * (after - before):+.2f} points) on {row['images']} "
        f"evaluation images; {row['agrees']:.1%} of the answers are equal. Calibrated on {row['calibrated']} training images."
    )


def _exact(
    form: str, network: FeatureExtractor, path: Path, answer: forms.Answer, images: Tensor, expected: Tensor
) -> dict[str, Any]:
    got = _outputs(form, answer, images, _TOLERANCE)
    difference = _difference(got, expected)
    if not difference <= _TOLERANCE:
        raise UhkdError(
            f"{path} answers otherwise than PyTorch: its logits differ by up to {difference:.1%} of the largest; it was deleted, "
            "please report this with the network's name"
        )
    agrees = None if network.shapes.logits is None else float((got.argmax(1) == expected.argmax(1)).float().mean())
    return {"differs": difference, "agrees": agrees}


@torch.no_grad()
def _accuracy_of(
    form: str, network: FeatureExtractor, answer: forms.Answer, images: _Images, max_drop: float
) -> dict[str, Any]:
    """Accuracy before and after, and how far the answers are the same."""
    _outputs(form, answer, images.few, _ROUNDING)
    before, after, labels = [], [], []
    for batch in images.all():
        before.append(network.plain(batch.image).float())
        after.append(answer(batch.image).float())
        labels.append(batch.label)
    one, other, truth = torch.cat(before), torch.cat(after), torch.cat(labels)
    accuracies = [float((logits.argmax(1) == truth).double().mean()) for logits in (one, other)]
    agrees = float((one.argmax(1) == other.argmax(1)).double().mean())
    drop = 100 * (accuracies[0] - accuracies[1])
    if drop > max_drop:
        raise UhkdError(
            f"{form}: accuracy falls by {drop:.2f} points, from {accuracies[0]:.2%} to {accuracies[1]:.2%} on {len(truth)} "
            f"images, --max-drop allows {max_drop:g}; try another --calibrate (now {len(images.calibration)} images), another "
            "form, or a larger --max-drop"
        )
    row = {"differs": _difference(other, one), "agrees": agrees, "accuracy_before": accuracies[0]}
    return row | {"accuracy": accuracies[1], "images": len(truth), "calibrated": len(images.calibration)}


def _difference(got: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest logit."""
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@torch.no_grad()
def _outputs(form: str, answer: forms.Answer, images: Tensor, tolerance: float) -> Tensor:
    """Answers to all images at once; two of them also alone, which must not matter.

    Raises:
        UhkdError: where it does.
    """
    together = answer(images).float()
    for i in (0, len(images) - 1):
        alone = answer(images[i : i + 1]).float()[0]
        most = tolerance * float(together.abs().max())
        if not torch.allclose(alone, together[i], rtol=tolerance, atol=most):
            raise UhkdError(
                f"{form} answers otherwise when an image is in a batch than alone: a network must treat each image by itself "
                "(in eval mode too); choose another form, or another network"
            )
    return together


@torch.no_grad()
def _milliseconds(answer: forms.Answer, images: Tensor) -> float:
    times = []
    for i in range(_REPEATS + 3):
        began = time.perf_counter()
        answer(images[i % len(images)][None])
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[3:])


def _spread(source: ImageSource, count: int) -> ImageSource:
    """Images at equal distances: folders have one class after the other."""
    return Split(source, np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)))


def _bytes_of(network: FeatureExtractor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.module.state_dict().values())
