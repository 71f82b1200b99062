"""`eval` and `predict`: what a trained network says of images."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from uhkd.console import escape, log_info, print_result, print_table
from uhkd.data import DataSplits, ImageSource, ShardOptions, eval_loader, open_data
from uhkd.data.augment import fit
from uhkd.data.decode import EXTENSIONS, decode_file
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import Evaluation, latency
from uhkd.evaluation.metrics import evaluate as score
from uhkd.evaluation.probe import embed
from uhkd.evaluation.probe import probe as fit_probe
from uhkd.features import FeatureExtractor
from uhkd.models import load_run
from uhkd.recipe import build
from uhkd.recipe.arguments import EvalArguments, PredictArguments
from uhkd.runs import RunFolder
from uhkd.training.inputs import image_size
from uhkd.training.summary import KINDS


def evaluate(arguments: EvalArguments | None = None, *, data: Any = None, **options: Any) -> dict[str, float]:
    """Measure a run's network on its own or other data; prints a table and returns the metrics (fractions, nats, ms).

    Raises:
        UhkdError: for a folder that is no run, data without the network's classes, or a part that the data lacks.
    """
    if arguments is None:
        if data is not None:
            options["data"] = data if isinstance(data, str | Path) else f"object/{type(data).__name__}"
        arguments = build(EvalArguments, options)
    source = data if data is not None and not isinstance(data, str | Path) else arguments.data
    queries = arguments.split, arguments.batch_size, arguments.device, arguments.probe
    result, title, network = measure(arguments.run, source, *queries)
    metrics = result.metrics | {"latency_ms": latency(network)}
    table = Table("metric", "value", title=escape(title))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.2%}" if name in ("accuracy", "top5") else f"{value:.4g}")
    print_table(table)
    return metrics


def measure(
    run: str,
    data: Any = None,
    split: str = "auto",
    batch_size: int = 256,
    device: str = "auto",
    probe: Literal["none", "knn", "linear"] = "none",
) -> tuple[Evaluation, str, FeatureExtractor]:
    """A run's network on a part of some data (None: what it was trained on): the evaluation, a title, the network.

    probe: instead of its head, a probe on its embeddings, fitted on the data's training part.

    Raises:
        UhkdError: as `evaluate`.
    """
    network, chosen = open_run(run, device)
    if probe == "none" and network.shapes.logits is None:
        raise UhkdError(
            f"{run} has no head, as it learned without labels: measure its embedding with --probe knn or --probe linear, on "
            "--data with labels"
        )
    opened, part, images = images_of(run, network, data, split, probed=probe != "none")
    if probe != "none":
        size = image_size(opened, [network])
        known, queries = (
            embed(network, eval_loader(source, size, batch_size=batch_size), chosen)
            for source in (opened.train, images)
        )
        on = f"{len(opened.train)} training, {len(images)} {part} images of {opened.name}"
        title = f"{network.card.name}, {KINDS[probe]} on {on}"
        return fit_probe(probe, known, queries, len(opened.classes)), title, network
    loader = eval_loader(images, image_size(opened, [network]), batch_size=batch_size)
    title = f"{network.card.name} on {len(images)} {part} images of {opened.name}"
    return score(network, loader, chosen), title, network


def images_of(
    run: str, network: FeatureExtractor, data: Any = None, split: str = "auto", *, probed: bool = False
) -> tuple[DataSplits, str, ImageSource]:
    """Some data (None: what a run was trained on), with the network's classes, and which part of it was asked for.

    probed: for a probe, which has classes of its own: those of the data, and None means what judged the run.

    Raises:
        UhkdError: a run that does not say its data, other classes, or a part that the data lacks.
    """
    recipe = RunFolder(run).read_recipe() if RunFolder(run).started() else {}
    if probed and data is None and recipe.get("probe_data") is not None:
        data = recipe["probe_data"]
    labels = data is not None or not recipe.get("unlabelled", False)
    if data is None and recipe.get("data", "object/").startswith("object/"):
        raise UhkdError(f"{run} does not say what data it was trained on; name some with --data")
    opened = open_data(
        recipe["data"] if data is None else data,
        val_fraction=recipe.get("val_fraction", 0.1),
        train_limit=recipe.get("train_limit") if data is None else None,
        skip_bad_images=recipe.get("skip_bad_images", False),
        class_names=None if probed else network.card.classes or None,
        shards=ShardOptions(keep=recipe.get("shard_cache"), keep_gb=recipe.get("shard_cache_gb", 100.0)),
        labels=labels,
    )
    if probed and not opened.classes:
        raise UhkdError(f"data {opened.name} has no labels to fit a probe on; name labelled images with --data")
    part = split if split != "auto" else ("val" if opened.test is None else "test")
    images = opened.val if part == "val" else opened.test
    if images is None:
        raise UhkdError(f"data {opened.name} has no test part; use --split val")
    return opened, part, images


def predict(arguments: PredictArguments | None = None, **options: Any) -> dict[str, list[tuple[str, float]]]:
    """The likeliest classes of image files: prints a line an image (or CSV) and returns {file: [(class, probability), ...]}.

    Raises:
        UhkdError: for a folder that is no run, a path without images, or a file that cannot be read.
    """
    arguments = build(PredictArguments, options) if arguments is None else arguments
    network, device = open_run(arguments.run, arguments.device)
    if network.shapes.logits is None:
        raise UhkdError(
            f"{arguments.run} has no classes to tell, as it learned without labels; train a head on top: uhkd finetune with "
            f"--start {arguments.run}, or measure it: uhkd eval {arguments.run} --data LABELLED_IMAGES --probe knn"
        )
    names = network.card.classes or tuple(map(str, range(network.shapes.logits or 0)))
    top, predictions = min(arguments.top, len(names)), {}
    for file in _files(arguments.images):
        image = fit(decode_file(file), network.input_size).float().div(255)[None].to(device)
        with torch.no_grad():
            best = network(image).logits.float().softmax(1)[0].topk(top)
        predictions[str(file)] = [
            (names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if not arguments.csv:
            print_result(escape(f"{file}: " + ", ".join(f"{name} {p:.1%}" for name, p in predictions[str(file)])))
    if arguments.csv:
        rows = [(file, n, *pair) for file, pairs in predictions.items() for n, pair in enumerate(pairs, 1)]
        page = io.StringIO()
        csv.writer(page, lineterminator="\n").writerows([("file", "rank", "class", "probability"), *rows])
        print_result(page.getvalue().removesuffix("\n"))
    return predictions


def open_run(run: str, device: str) -> tuple[FeatureExtractor, torch.device]:
    """A run's network on a device (auto: a GPU where there is one), and that device.

    Raises:
        UhkdError: for a folder that is no run, or a GPU that is not there.
    """
    network = load_run(run)
    for note in network.notes:
        log_info(note)
    if device == "cuda" and not torch.cuda.is_available():
        raise UhkdError("device=cuda was asked for and torch sees no GPU")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    return network.to(chosen), chosen


def _files(paths: Sequence[str]) -> list[Path]:
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
