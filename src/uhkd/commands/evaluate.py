"""`eval` and `predict`: a run's network on images."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from uhkd.console import escape, print_result, print_table
from uhkd.data.decode import EXTENSIONS, decode_file
from uhkd.data.resize import fit_image
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import latency
from uhkd.recipe import build
from uhkd.recipe.arguments import EvalArguments, PredictArguments
from uhkd.training.run_evaluation import measure, open_run


def evaluate(arguments: EvalArguments | None = None, *, data: Any = None, **options: Any) -> dict[str, float]:
    """Measure a run's network on its own or other data; print a table and return the metrics (fractions, nats, ms).

    Raises:
        UhkdError: no run folder, data without the network's classes, or data without the requested part.
    """
    is_object = data is not None and not isinstance(data, str | Path)
    if arguments is None:
        if data is not None:
            options["data"] = f"object/{type(data).__name__}" if is_object else data
        arguments = build(EvalArguments, options)
    source = data if is_object else arguments.data
    result, title, network = measure(
        arguments.run, source, arguments.split, arguments.batch_size, arguments.device, arguments.probe
    )
    metrics = result.metrics | {"latency_ms": latency(network)}
    table = Table("metric", "value", title=escape(title))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.2%}" if name in ("accuracy", "top5") else f"{value:.4g}")
    print_table(table)
    return metrics


def predict(arguments: PredictArguments | None = None, **options: Any) -> dict[str, list[tuple[str, float]]]:
    """Print the most probable classes of image files, one line per image or as CSV; return {file: [(class, probability), ...]}.

    Raises:
        UhkdError: no run folder, a path without images, or an unreadable file.
    """
    arguments = build(PredictArguments, options) if arguments is None else arguments
    network, device = open_run(arguments.run, arguments.device)
    if network.shapes.logits is None:
        raise UhkdError(
            f"{arguments.run} has no classes to predict, because it was trained without labels; train a head on top: uhkd "
            f"finetune with --start {arguments.run}, or measure it: uhkd eval {arguments.run} --data LABELLED_IMAGES --probe knn"
        )
    names = network.config.classes or tuple(map(str, range(network.shapes.logits)))
    predictions: dict[str, list[tuple[str, float]]] = {}
    for file in _image_files(arguments.images):
        image = fit_image(decode_file(file), network.input_size, network.config.resize)
        image = image.float().div(255)[None].to(device)
        with torch.no_grad():
            best = network(image).logits.float().softmax(1)[0].topk(min(arguments.top, len(names)))
        pairs = [(names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        predictions[str(file)] = pairs
        if not arguments.csv:
            print_result(escape(f"{file}: " + ", ".join(f"{name} {p:.1%}" for name, p in pairs)))
    if arguments.csv:
        rows = [(file, rank, *pair) for file, pairs in predictions.items() for rank, pair in enumerate(pairs, 1)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("file", "rank", "class", "probability"), *rows])
        print_result(text.getvalue().removesuffix("\n"))
    return predictions


def _image_files(paths: Sequence[str]) -> list[Path]:
    """Return the files, and all image files below the folders, in sorted order."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.suffix.lower()[1:] in EXTENSIONS and f.is_file())
            if not inside:
                raise UhkdError(f"no images in {path}: expected files that end in {' '.join(sorted(EXTENSIONS))}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UhkdError(f"no such file or folder: {path}; give image files, or folders of them")
    return files
