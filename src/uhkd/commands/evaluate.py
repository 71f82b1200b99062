"""`eval` and `predict`: a run's network on images."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uhkd.commands.class_tables import class_tables, metric_table
from uhkd.commands.objects import take_objects
from uhkd.console import escape, log_info, pluralize, print_result, print_table
from uhkd.data.decode import BadImage, decode_file
from uhkd.data.formats import describe_other_files
from uhkd.data.listing import images_below
from uhkd.data.names import is_remote
from uhkd.data.resize import fit_image
from uhkd.errors import UhkdError
from uhkd.evaluation.class_metrics import class_metrics
from uhkd.evaluation.metrics import gap, latency, score
from uhkd.recipe import build, path_hint
from uhkd.recipe.arguments import EvalArguments, PredictArguments
from uhkd.runs import processor
from uhkd.training.oom import LARGE_BATCH, LARGE_NETWORK, memory_advice
from uhkd.training.run_evaluation import measure, open_run


@memory_advice(LARGE_BATCH)
def evaluate(arguments: EvalArguments | None = None, **options: Any) -> dict[str, Any]:
    """Measure a run's network on its own or other data; print tables and return the metrics (fractions, nats, ms).

    Beside those of `uhkd.evaluation.metrics.score`, as trained: `gap` (mean confidence minus accuracy); `nll_calibrated`,
    `ece_calibrated` and `gap_calibrated` with the run's `temperature`; those of `uhkd.evaluation.class_metrics`; `latency_ms`.

    Raises:
        UhkdError: no run folder, data without the network's classes, or data without the requested part.
    """
    objects = take_objects(options, ("data",))
    arguments = build(EvalArguments, options) if arguments is None else arguments
    source = objects.get("data", arguments.data)
    result, title, network, classes = measure(
        arguments.run, source, arguments.split, arguments.batch_size, arguments.device, arguments.probe, arguments
    )
    temperature = network.config.temperature if arguments.probe == "none" else 1.0
    calibrated = score(result.logits / temperature, result.labels)
    metrics: dict[str, Any] = result.metrics | {
        "gap": gap(result.logits, result.labels),
        "temperature": temperature,
        **{f"{name}_calibrated": calibrated[name] for name in ("nll", "ece")},
        "gap_calibrated": gap(result.logits / temperature, result.labels),
        **class_metrics(result, classes),
        "latency_ms": latency(network),
    }
    device = next(network.parameters()).device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print_table(metric_table(metrics, title, machine), *class_tables(metrics, full=arguments.per_class))
    return metrics


class Predictions(dict[str, list[tuple[str, float]]]):
    """The most probable classes of image files: {file: [(class, probability), ...]}.

    failed: {file: reason} of the files that cannot be decoded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if a file cannot be decoded."""
        return 1 if self.failed else 0


@memory_advice(LARGE_NETWORK)
def predict(arguments: PredictArguments | None = None, **options: Any) -> Predictions:
    """Print the most probable classes of image files, one line per image or as CSV, and return them.

    Files that cannot be decoded are listed at the end on standard error, and returned as `failed`.

    Raises:
        UhkdError: no run folder, or a path without images.
    """
    arguments = build(PredictArguments, options) if arguments is None else arguments
    network, device = open_run(arguments.run, arguments.device)
    if network.shapes.logits is None:
        raise UhkdError(
            f"{arguments.run} has no classes to predict, because it was trained without labels; train a head on top: uhkd "
            f"finetune with --start {arguments.run}, or measure it: uhkd eval {arguments.run} --data LABELLED_IMAGES --probe knn"
        )
    names = network.config.classes or tuple(map(str, range(network.shapes.logits)))
    predictions = Predictions()
    for file in _image_files(arguments.images):
        try:
            pixels = decode_file(file)
        except BadImage as error:
            predictions.failed[str(file)] = error.reason
            continue
        image = fit_image(pixels, network.input_size, network.config.resize).float().div(255)[None].to(device)
        with torch.no_grad():
            logits = network(image).logits.float() / network.config.temperature
            best = logits.softmax(1)[0].topk(min(arguments.topk, len(names)))
        pairs = [(names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        predictions[str(file)] = pairs
        if not arguments.csv:
            print_result(escape(f"{file}: " + ", ".join(f"{name} {p:.1%}" for name, p in pairs)))
    if arguments.csv:
        rows = [(file, rank, *pair) for file, pairs in predictions.items() for rank, pair in enumerate(pairs, 1)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("file", "rank", "class", "probability"), *rows])
        print_result(text.getvalue().removesuffix("\n"))
    if predictions.failed:
        count = pluralize(len(predictions.failed), "file")
        print(f"uhkd predict: {count} without prediction:", file=sys.stderr)
        for file, reason in predictions.failed.items():
            print(escape(f"  {file}: {reason}"), file=sys.stderr)
    return predictions


def _image_files(paths: Sequence[str]) -> list[Path]:
    """Return the files, and all image files below the folders, in sorted order."""
    files: list[Path] = []
    other_files: Counter[str] = Counter()
    for name in paths:
        if is_remote(str(name)):
            raise UhkdError(f"{name} is an address: download the image and give the file")
        if (path := Path(name)).is_dir():
            inside = [path / name for name in images_below(path, path, other_files)]
            if not inside:
                raise UhkdError(f"no images in {path}; other files: {describe_other_files(other_files) or 'none'}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            hint = path_hint(path, Path.exists) or "; give image files, or folders of them"
            raise UhkdError(f"no such file or folder: {path}{hint}")
    if other_files:
        log_info(f"left aside, because they are not images: {describe_other_files(other_files)}")
    return files
