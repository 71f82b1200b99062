"""`inspect`: layers, feature maps and one step of a pair of networks without training."""

import sys
import time
from typing import Any

import numpy as np
import torch
from rich.table import Table

from uhkd.console import escape, print_result, print_table
from uhkd.data import ArraySource, Batch, DataSplits, eval_loader
from uhkd.features import FeatureExtractor, NetworkOutput
from uhkd.models.types import as_size
from uhkd.recipe import DistillRecipe, build
from uhkd.recipe.arguments import InspectArguments
from uhkd.spectral import ftm_shapes
from uhkd.training import weighted_sum
from uhkd.training.fit import count_parameters
from uhkd.training.oom import LARGE_IMAGES, memory_advice
from uhkd.training.setup import Setup, prepare
from uhkd.training.teacher import Teacher, calibrate

_BATCH = 8


@memory_advice(LARGE_IMAGES)
def inspect(arguments: InspectArguments | None = None, **fields: Any) -> dict[str, float]:
    """Print layers, map sizes and matched spectra of a pair, run one step on a small batch, and return its loss terms.

    Networks have random weights (run folders theirs): shapes, time and memory do not depend on them.

    Raises:
        UhkdError: names, sizes or settings cannot work together.
    """
    arguments = build(InspectArguments, fields) if arguments is None else arguments
    options = arguments.model_dump(exclude={"num_classes", "data"})
    recipe = build(DistillRecipe, options | {"data": arguments.data or "random", "batch_size": 2, "epochs": 1})
    recipe = recipe.model_copy(update={"device": "cpu", "precision": "fp32"})
    setup = prepare(recipe, data=_random(arguments) if arguments.data is None else None, dry_run=True)
    learner, batch = setup.learner, _batch(setup)
    for role, network in (*(("teacher", network) for network in setup.networks), ("student", learner.student)):
        print_table(_layers(role, network))
    for teacher in setup.live_teachers:
        if teacher.ftm is not None:
            print_table(_levels(teacher, learner.student, arguments.method))
            calibrate(teacher, [batch], setup.fabric.device)
    began = time.perf_counter()
    teacher_output = NetworkOutput() if setup.teacher is None else setup.teacher.outputs(batch, learner.teacher_needs)
    terms = learner(batch, teacher_output)
    weighted_sum(terms, learner.weights(setup.ce_weight)).backward()
    seconds = time.perf_counter() - began
    extra = count_parameters(learner.distillers)
    values = ", ".join(f"{k} {v.item():.4g}" for k, v in terms.items())
    print_result(f"one step on {len(batch.index)} images: {values}")
    print_result(
        f"{seconds:.2f} s without warm-up, peak resident memory {_peak_mib():.0f} MiB; "
        f"{extra / 1e6:.2f} M parameters of the method are trained and discarded afterwards"
    )
    return {name: value.item() for name, value in terms.items()}


def _random(arguments: InspectArguments) -> DataSplits:
    """Return random images as data."""
    size, classes = as_size(arguments.image_size or 224), arguments.num_classes
    pixels = np.random.default_rng(0).integers(256, size=(_BATCH, *size, 3), dtype=np.uint8)
    source = ArraySource(pixels, np.arange(_BATCH) % classes)
    names = tuple(str(number) for number in range(classes))
    return DataSplits("random images", names, source, source, None, size, flip=True, notes=(), fingerprint="random")


def _batch(setup: Setup) -> Batch:
    """Return the first validation images without augmentation."""
    source, classes = setup.data.val, len(setup.data.classes)
    batch = next(iter(eval_loader(source, setup.augmentation.size, batch_size=min(_BATCH, len(source)))))
    target = None if batch.label is None else torch.nn.functional.one_hot(batch.label, classes).float()
    return batch._replace(target=target, index=torch.arange(len(batch.image)))


def _layers(role: str, network: FeatureExtractor) -> Table:
    height, width = network.input_size
    parameters = count_parameters(network.module)
    title = f"{role} {escape(network.config.name)}: {parameters / 1e6:.2f} M parameters, input {height}x{width}"
    table = Table("level", "layer", "channels", "grid", title=title)
    for i, (name, (c, h, w)) in enumerate(zip(network.levels, network.shapes.maps, strict=True)):
        table.add_row(str(i + 1), escape(name), str(c), f"{h}x{w}")
    return table


def _levels(teacher: Teacher, student: FeatureExtractor, method: str) -> Table:
    columns = ("student layer", "teacher layer", "coefficients", "numbers per image")
    table = Table(*columns, title=f"matched levels of {method}")
    assert teacher.ftm is not None
    target, network = teacher.ftm.target, teacher.network
    for level, (channels, k) in zip(target.levels, ftm_shapes(target, network.shapes.maps), strict=True):
        layers = escape(student.levels[level.student]), escape(network.levels[level.teacher])
        table.add_row(*layers, f"{'x'.join(map(str, level.size))} {level.form}", str(channels * k))
    return table


def _peak_mib() -> float:
    """Return the peak resident memory of this process, NaN on Windows."""
    try:
        import resource
    except ImportError:
        return float("nan")
    # ru_maxrss counts KiB on Linux and bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
