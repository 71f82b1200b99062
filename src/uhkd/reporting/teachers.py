"""Data on the teachers of runs, from the students' run folders and from the teachers' own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from uhkd.reporting.run_data import Run, number

_METRICS = ("accuracy", "top5", "nll", "ece")


@dataclass(frozen=True)
class Teacher:
    """A teacher on the data of a student group; fields are None or empty where they were not recorded.

    metrics: on the validation images. test: accuracy on the test split. latency: in milliseconds. prediction: the predicted
    class of each validation image, (N,).
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


def folder_of(teacher: str | None, runs: Sequence[Run]) -> Run | None:
    """Return the run that a recipe names as its teacher, also after all folders were moved together."""
    if teacher is None:
        return None
    path = Path(teacher)
    candidates = [run for run in runs if run.method == "finetune" or run.finished]
    if exact := [run for run in candidates if path.is_absolute() and run.path == path]:
        return exact[0]
    for parts in (3, 2) if len(path.parts) >= 2 else ():
        matches = [run for run in candidates if run.path.parts[-parts:] == path.parts[-parts:]]
        if len(matches) == 1:
            return matches[0]
    return None


def teachers_of(runs: Sequence[Run]) -> tuple[Teacher, ...]:
    """Return the teachers of runs with several teachers, from the first run that recorded their metrics."""
    by_run = [run.teachers for run in runs if run.teachers]
    measured = (teachers for teachers in by_run if any(metrics for _, metrics in teachers))
    teachers = next(measured, by_run[0] if by_run else ())
    return tuple(Teacher(_short_name(name), metrics) for name, metrics in teachers)


def teacher_of(students: Sequence[Run], runs_by_name: dict[str, Run]) -> Teacher | None:
    """Return the single teacher of some runs, from the students' records and from its own run if it is among the runs.

    runs_by_name: the run of the teacher of each student.
    """
    student = next((r for r in students if r.teacher is not None and not r.teachers and r.method != "scratch"), None)
    if student is None:
        return None
    assert student.teacher is not None
    run = runs_by_name.get(student.name)
    # with another split, its predictions would be for other images
    same_data = run if run is not None and run.data == student.data else None
    metrics = {k: number(student.result, "teacher_metrics", k) for k in _METRICS}
    if same_data is not None and all(value is None for value in metrics.values()):
        metrics = {k: same_data.metric(f"val_{k}") for k in _METRICS}

    def size(name: str) -> float | None:
        sizes = [number(r.result, "sizes", "teacher", name) for r in students]
        sizes.append(None if run is None else number(run.result, "sizes", "student", name))
        return next((value for value in sizes if value is not None), None)

    latencies = [r.latency("teacher") for r in students]
    latencies.append(None if run is None else run.latency("student"))
    recorded = next((r for r in students if r.predictions("teacher") is not None), None)
    source, prefix = (recorded, "teacher") if recorded is not None else (same_data, "val")
    return Teacher(
        f"{run.student} ({run.name})" if run is not None else _short_name(student.teacher),
        {k: v for k, v in metrics.items() if v is not None},
        number(run.test, "accuracy") if run is not None else None,
        size("parameters") or (number(run.result, "parameters") if run is not None else None),
        size("flops"),
        size("bytes"),
        next((latency for latency in latencies if latency is not None), None),
        source.predictions(prefix) if source is not None else None,
        source.array(f"{prefix}_confidence", 1) if source is not None else None,
    )


def _short_name(teacher: str) -> str:
    """Return a name without paths of a machine: the last two parts of an absolute path."""
    path = PurePath(teacher)
    return "/".join(path.parts[-2:]) if path.is_absolute() else teacher
