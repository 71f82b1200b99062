"""`eval` and `predict`: a run's network on images."""

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
from uhkd.evaluation.metrics import evaluate as evaluate_network
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


def measure(
    run: str,
    data: Any = None,
    split: str = "auto",
    batch_size: int = 256,
    device: str = "auto",
    probe: Literal["none", "knn", "linear"] = "none",
) -> tuple[Evaluation, str, FeatureExtractor]:
    """Evaluate a run's network on a part of some data; return the evaluation, a title and the network.

    data: None: the data that the run was trained on. probe: replaces the head by a probe on the embeddings, fitted on the
    training part of the data.

    Raises:
        UhkdError: as `evaluate`.
    """
    network, torch_device = open_run(run, device)
    if probe == "none" and network.shapes.logits is None:
        raise UhkdError(
            f"{run} has no head, because it was trained without labels: measure its embedding with --probe knn or "
            "--probe linear, on --data with labels"
        )
    opened, part, images = images_of(run, network, data, split, probed=probe != "none")
    size = image_size(opened, [network])
    loader = eval_loader(images, size, batch_size=batch_size)
    if probe == "none":
        title = f"{network.config.name} on {len(images)} {part} images of {opened.name}"
        return evaluate_network(network, loader, torch_device), title, network
    known = embed(network, eval_loader(opened.train, size, batch_size=batch_size), torch_device)
    queries = embed(network, loader, torch_device)
    counts = f"{len(opened.train)} training, {len(images)} {part} images of {opened.name}"
    return (
        fit_probe(probe, known, queries, len(opened.classes)),
        f"{network.config.name}, {KINDS[probe]} on {counts}",
        network,
    )


def images_of(
    run: str, network: FeatureExtractor, data: Any = None, split: str = "auto", *, probed: bool = False
) -> tuple[DataSplits, str, ImageSource]:
    """Open data with the network's classes; return it, the name of the requested part (val or test) and its images.

    data: None: the data that the run was trained on. probed: use the classes of the data instead of the network's; data None
    is then the run's probe data, if it has some.

    Raises:
        UhkdError: the run does not record its data, the classes differ, or the data has no such part.
    """
    recipe = RunFolder(run).read_recipe() if RunFolder(run).started() else {}
    if probed and data is None and recipe.get("probe_data") is not None:
        data = recipe["probe_data"]
    if data is None and recipe.get("data", "object/").startswith("object/"):
        raise UhkdError(f"{run} does not record the data that it was trained on; name some with --data")
    opened = open_data(
        recipe["data"] if data is None else data,
        val_fraction=recipe.get("val_fraction", 0.1),
        train_limit=recipe.get("train_limit") if data is None else None,
        skip_bad_images=recipe.get("skip_bad_images", False),
        class_names=None if probed else network.config.classes or None,
        shards=ShardOptions(keep=recipe.get("shard_cache"), keep_gb=recipe.get("shard_cache_gb", 100.0)),
        labels=data is not None or not recipe.get("unlabelled", False),
    )
    if probed and not opened.classes:
        raise UhkdError(f"data {opened.name} has no labels to fit a probe on; name labelled images with --data")
    part = split if split != "auto" else ("val" if opened.test is None else "test")
    images = opened.val if part == "val" else opened.test
    if images is None:
        raise UhkdError(f"data {opened.name} has no test split; use --split val")
    return opened, part, images


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
        image = fit(decode_file(file), network.input_size).float().div(255)[None].to(device)
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


def open_run(run: str, device: str) -> tuple[FeatureExtractor, torch.device]:
    """Load a run's network onto a device (auto: a GPU if there is one); return both.

    Raises:
        UhkdError: no run folder, or no GPU for device cuda.
    """
    network = load_run(run)
    for note in network.notes:
        log_info(note)
    if device == "cuda" and not torch.cuda.is_available():
        raise UhkdError("device=cuda was requested, but torch finds no GPU; use device=auto")
    torch_device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    return network.to(torch_device), torch_device


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
