"""What is known of the teachers of runs, from the students' folders and from their own where these are here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from uhkd.reporting.run_data import Run, number

_METRICS = ("accuracy", "top5", "nll", "ece")


@dataclass(frozen=True)
class Teacher:
    """What is known of a teacher on the data of a family; None and empty where it was not recorded.

    metrics: of the validation part. prediction: the class it names for each validation image.
    """

    name: str
    metrics: dict[str, float]
    test: float | None = None
    parameters: float | None = None
    flops: float | None = None
    bytes: float | None = None
    latency: float | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None


def folder_of(values: str | None, runs: Sequence[Run]) -> Run | None:
    """The run among these that a recipe names as its teacher, also where all of them were moved together."""
    if values is None:
        return None
    place = Path(values)
    candidates = [run for run in runs if run.method == "finetune" or run.finished]
    exact = [run for run in candidates if place.is_absolute() and run.path == place]
    if exact or len(place.parts) < 2:
        return exact[0] if exact else None
    for parts in (3, 2):
        near = [run for run in candidates if run.path.parts[-parts:] == place.parts[-parts:]]
        if len(near) == 1:
            return near[0]
    return None


def teachers_of(runs: Sequence[Run]) -> tuple[Teacher, ...]:
    """Several teachers, as the first run that measured them says."""
    known = [run for run in runs if run.teachers]
    best = next((run for run in known if any(metrics for _, metrics in run.teachers)), known[0] if known else None)
    return () if best is None else tuple(Teacher(_brief(name), metrics) for name, metrics in best.teachers)


def teacher_of(runs: Sequence[Run], runs_by_name: dict[str, Run]) -> Teacher | None:
    """What its own run folder says of a teacher, if that is here and of the same images, and what the students noted."""
    run = next((r for r in runs if r.teacher is not None and not r.teachers and r.method != "scratch"), None)
    if run is None:
        return None
    assert run.teacher is not None
    own = runs_by_name.get(run.name)
    # another split of the images would make its predictions those of other images
    same = own is not None and own.data == run.data
    shown = own if same else None
    noted = next((r for r in runs if r.predictions("teacher") is not None), None)
    values = {k: number(run.result, "teacher_metrics", k) for k in _METRICS}
    if shown is not None and not any(v is not None for v in values.values()):
        values = {k: shown.metric(f"val_{k}") for k in _METRICS}
    metrics = {k: v for k, v in values.items() if v is not None}

    def size(name: str) -> float | None:
        here = (number(r.result, "sizes", "teacher", name) for r in runs)
        there = None if own is None else number(own.result, "sizes", "student", name)
        return next((x for x in here if x is not None), there)

    latency = next((a for r in runs if (a := r.array("teacher_latency_ms", 1)) is not None), None)
    if latency is None and own is not None:
        latency = own.array("latency_ms", 1)
    source = (noted, "teacher") if noted is not None else (shown, "val")
    prediction = None if source[0] is None else source[0].predictions(source[1])
    confidence = None if source[0] is None else source[0].array(f"{source[1]}_confidence", 1)
    parameters = size("parameters") or (number(own.result, "parameters") if own else None)
    named = f"{own.student} ({own.name})" if own is not None else _brief(run.teacher)
    test = number(own.test, "accuracy") if own is not None else None
    seconds = None if latency is None else float(latency[0])
    return Teacher(named, metrics, test, parameters, size("flops"), size("bytes"), seconds, prediction, confidence)


def _brief(teacher: str) -> str:
    """A name without the places of a machine: the last two parts of a path."""
    place = PurePath(teacher)
    return "/".join(place.parts[-2:]) if place.is_absolute() else teacher
