"""Evaluation of a run's network on its own or other data."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from uhkd.console import log_info
from uhkd.data import Columns, DataSplits, ImageSource, ShardOptions, eval_loader, open_data
from uhkd.data.names import may_download
from uhkd.data.worker_errors import check_main_guard
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import Evaluation, evaluate
from uhkd.evaluation.probe import embed
from uhkd.evaluation.probe import probe as fit_probe
from uhkd.features import FeatureExtractor
from uhkd.models import load_run
from uhkd.recipe import DataOptions, SourceOptions, build
from uhkd.runs import RunFolder
from uhkd.runs.best_epoch import best_epoch
from uhkd.training.inputs import image_size
from uhkd.training.machine import find_device
from uhkd.training.summary import KINDS


def open_run(run: str, device: str) -> tuple[FeatureExtractor, torch.device]:
    """Load a run's network onto a device (auto: a GPU if there is one); return both.

    Raises:
        UhkdError: no run folder, or no GPU for device cuda or mps.
    """
    check_main_guard()
    network = load_run(run)
    for note in network.notes:
        log_info(note)
    torch_device = torch.device(find_device(device))
    return network.to(torch_device), torch_device


def measure(
    run: str,
    data: Any = None,
    split: str = "auto",
    batch_size: int = 256,
    device: str = "auto",
    probe: Literal["none", "knn", "linear"] = "none",
    options: SourceOptions | None = None,
) -> tuple[Evaluation, str, FeatureExtractor, tuple[str, ...]]:
    """Evaluate a run's network on a split of some data; return the evaluation, a title, the network and its class names.

    data: None: the data that the run was trained on. probe: replaces the head by a probe on the embeddings, fitted on the
    training split of the data. options: see `images_of`.

    Raises:
        UhkdError: as `open_run` and `images_of`; the network has no head, or images have no labels.
    """
    network, torch_device = open_run(run, device)
    if probe == "none" and network.shapes.logits is None:
        raise UhkdError(
            f"{run} has no head, because it was trained without labels: measure its embedding with --probe knn or "
            "--probe linear, on --data with labels"
        )
    opened, split_name, images = images_of(run, network, data, split, probed=probe != "none", options=options)
    size = image_size(opened, [network])
    own = data is None or _same_data(run, data) or bool(_own_result(run, opened))
    other = split == "auto" and split_name == "val" and opened.val_fraction is not None and not own and probe == "none"
    all_parts = split == "all" or other
    parts = [part for part in (opened.train, opened.val, opened.test) if part is not None] if all_parts else [images]
    loader = chain.from_iterable(eval_loader(x, size, batch_size=batch_size, resize=opened.resize) for x in parts)
    if probe == "none":
        title = f"{network.config.name} on {sum(map(len, parts))}{'' if all_parts else f' {split_name}'} images of {opened.name}"
        if other:
            log_info("all images are measured, because the run was trained on other data")
        elif all_parts and own:
            log_info("warning: the network was trained on these images; choose others for an unbiased number")
        return evaluate(network, loader, torch_device), title, network, network.config.classes
    train = eval_loader(opened.train, size, batch_size=batch_size, resize=opened.resize)
    known = embed(network, train, torch_device)
    queries = embed(network, loader, torch_device)
    counts = f"{len(opened.train)} training, {len(images)} {split_name} images of {opened.name}"
    return (
        fit_probe(probe, known, queries, len(opened.classes)),
        f"{network.config.name}, {KINDS[probe]} on {counts}",
        network,
        tuple(opened.classes),
    )


def images_of(
    run: str,
    network: FeatureExtractor,
    data: Any = None,
    split: str = "auto",
    *,
    probed: bool = False,
    options: SourceOptions | None = None,
) -> tuple[DataSplits, str, ImageSource]:
    """Open data with the network's classes; return it, the name of the requested split and its images (all: those of val).

    data: None: the data that the run was trained on. probed: use the classes of the data instead of the network's; data None
    is then the run's probe data, if it has some. options: parts of `data` (unless it is `Columns`), and whether to skip
    unreadable files where the run did not.

    Raises:
        UhkdError: the run does not record its data, its data would be downloaded, the classes differ, or there is no such split.
    """
    recipe, options = RunFolder(run).read_recipe() if RunFolder(run).started() else {}, options or SourceOptions()
    named = data is not None
    try:
        build(DataOptions, {"data": ""} | {key: recipe[key] for key in DataOptions.model_fields if key in recipe})
    except UhkdError as error:
        raise UhkdError(f"{RunFolder(run).recipe} is damaged: {error}") from None
    if probed and data is None and recipe.get("probe_data") is not None:
        data = recipe["probe_data"]
    if data is None and recipe.get("data", "object/").startswith("object/"):
        raise UhkdError(f"{run} does not record the data that it was trained on; name some with --data")
    # the run may come from someone else: only a user's own words may lead to the network
    recorded = recipe["data"] if data is None else data
    if not named and isinstance(recorded, str) and may_download(recorded):
        raise UhkdError(f"the data of {run} is {recorded}, which may be downloaded: name it with --data {recorded}")
    columns = Columns.of(recipe) if data is None else Columns.of(options, data)
    opened = open_data(
        data if isinstance(data, Columns) else columns,
        val_fraction=recipe.get("val_fraction"),
        train_limit=recipe.get("train_limit") if data is None else None,
        skip_bad_images=options.skip_bad_images or recipe.get("skip_bad_images", False),
        class_names=None if probed else network.config.classes or None,
        shards=ShardOptions(keep=recipe.get("shard_cache"), keep_gb=recipe.get("shard_cache_gb", 100.0)),
        labels=data is not None or not recipe.get("unlabelled", False),
    )
    opened = replace(opened, resize=network.config.resize)
    if probed and not opened.classes:
        raise UhkdError(f"data {opened.name} has no labels to fit a probe on; name labelled images with --data")
    split_name = split if split != "auto" else ("val" if opened.test is None else "test")
    images = opened.test if split_name == "test" else opened.val
    if images is None:
        raise UhkdError(f"data {opened.name} has no test split; use --split val")
    if split_name == "val" and (result := _own_result(run, opened)) and (best := best_epoch(result)):
        log_info(f"warning: the network is that of {best}; choose other images for an unbiased number")
    return opened, split_name, images


def _same_data(run: str, data: Any) -> bool:
    """Return whether data has the name or path of the data that a run was trained on, whatever limits the run had."""
    if not isinstance(data, str | Path) or not RunFolder(run).started():
        return False
    own = str(RunFolder(run).read_recipe().get("data"))
    return own == str(data) or Path(own).expanduser().resolve() == Path(data).expanduser().resolve()


def _own_result(run: str, opened: DataSplits) -> dict[str, Any]:
    """Return the result of a run that was trained on just this data, else {}."""
    result = RunFolder(run).read_result() if RunFolder(run).result.is_file() else {}
    return result if result.get("data_fingerprint") == opened.fingerprint else {}
