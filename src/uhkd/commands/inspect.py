"""`inspect`: a pair of networks tried without training."""

import sys
import time
from typing import Any

import torch
from rich.table import Table

from uhkd.arguments import InspectArguments
from uhkd.data import Batch, eval_loader, open_data
from uhkd.methods import Distiller, build, check, compares_logits, without_labels
from uhkd.models import create
from uhkd.recipe import build as build_recipe
from uhkd.spectral import ftm_shapes
from uhkd.taps import Shapes, TappedModel
from uhkd.telling import put, say, show
from uhkd.text import shown
from uhkd.training import Learner, Teacher, weigh

_BATCH = 8


def inspect(arguments: InspectArguments | None = None, **words: Any) -> dict[str, float]:
    """Show taps, map sizes and matched spectra of a pair, then take one step of the method on a small batch.

    Networks get random weights (a run folder its own): shapes, time and memory do not depend on them. Returns the raw terms.

    Raises:
        ValueError: for names, sizes or settings that cannot work together, before any training is paid for.
    """
    asked = build_recipe(InspectArguments, words) if arguments is None else arguments
    check(asked.method, asked.settings, asked.weights)
    batch, classes = _batch(asked)
    weights = asked.weights
    teacher = create(asked.teacher, num_classes=None, options=asked.teacher_options, levels=asked.teacher_levels or 4)
    if not classes:
        weights = without_labels(asked.method, asked.settings, weights, logits=teacher.shapes.logits is not None)
        classes = teacher.shapes.logits or 0 if compares_logits(asked.method, asked.settings, weights) else 0
    elif teacher.shapes.logits != classes and teacher.shapes.embedding is not None:
        teacher.set_probe(torch.nn.Linear(teacher.shapes.embedding, classes))
    student = create(
        asked.student,
        num_classes=classes,
        image_size=asked.image_size,
        options=asked.student_options,
        levels=asked.student_levels or 4,
    )
    for role, network in (("teacher", teacher), ("student", student)):
        show(_taps(role, network))
        for note in network.notes:
            say(f"  {shown(note)}")
    shapes = Shapes(student.shapes, teacher.shapes, classes, len(batch.index))
    distillers = build(asked.method, shapes, asked.settings, weights)
    learner = Learner(student, distillers)
    target = next((d.needs.target for d in distillers.values() if isinstance(d, Distiller) and d.needs.target), None)
    sealed = Teacher(teacher, target)
    if target is not None:
        assert sealed.ftm is not None
        table = Table(
            "student tap", "teacher tap", "coefficients", "numbers an image", title=f"matched levels of {asked.method}"
        )
        for level, (channels, k) in zip(target.levels, ftm_shapes(target, teacher.shapes.maps), strict=True):
            kept = "x".join(map(str, level.size))
            table.add_row(
                shown(student.levels[level.student]),
                shown(teacher.levels[level.teacher]),
                f"{kept} {level.form}",
                str(channels * k),
            )
        show(table)
        with torch.no_grad():
            maps = teacher(batch.image, frozenset({"maps"})).maps
            sealed.ftm.calibrate([x.float() for x in sealed.ftm.raw(maps)])
    began = time.perf_counter()
    terms = learner(batch, sealed.signals(batch, learner.teacher_needs))
    weigh(terms, learner.weights()).backward()
    seconds = time.perf_counter() - began
    extra = sum(p.numel() for p in distillers.parameters())
    put(f"one step on {len(batch.index)} images: " + ", ".join(f"{k} {v.item():.4g}" for k, v in terms.items()))
    put(
        f"{seconds:.2f} s without warm-up, peak resident memory {_peak_mib():.0f} MiB; "
        f"{extra / 1e6:.2f} M parameters of the method are trained and thrown away"
    )
    return {name: value.item() for name, value in terms.items()}


def _batch(asked: InspectArguments) -> tuple[Batch, int]:
    if asked.data is None:
        generator = torch.Generator().manual_seed(0)
        side, classes = asked.image_size or 224, asked.num_classes
        image, label = torch.rand(_BATCH, 3, side, side, generator=generator), torch.arange(_BATCH) % classes
    else:
        data = open_data(asked.data)
        size = data.native_size or (224, 224)
        first = next(iter(eval_loader(data.val, size, batch_size=min(_BATCH, len(data.val)))))
        image, label, classes = first.image, first.label, len(data.classes)
        if label is None:
            return Batch(image, None, None, torch.arange(len(image))), 0
    target = torch.nn.functional.one_hot(label, classes).float()
    return Batch(image, target, label, torch.arange(len(image))), classes


def _taps(role: str, network: TappedModel) -> Table:
    height, width = network.input_size
    parameters = sum(p.numel() for p in network.module.parameters())
    title = f"{role} {shown(network.card.name)}: {parameters / 1e6:.2f} M parameters, input {height}x{width}"
    table = Table("level", "tap", "channels", "grid", title=title)
    for i, (name, (c, h, w)) in enumerate(zip(network.levels, network.shapes.maps, strict=True)):
        table.add_row(str(i + 1), shown(name), str(c), f"{h}x{w}")
    return table


def _peak_mib() -> float:
    """Peak resident memory of this process; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    # ru_maxrss counts KiB on Linux and bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
