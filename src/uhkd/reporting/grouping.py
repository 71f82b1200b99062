"""Group runs for comparison: seeds of one recipe form a method group; groups of one student and data set a student group."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import numpy as np

from uhkd.reporting.figure_data import hue_of
from uhkd.reporting.run_data import Run, number, text
from uhkd.reporting.teachers import Teacher, folder_of, teacher_of, teachers_of
from uhkd.runs import ELSEWHERE
from uhkd.runs.best_epoch import best_epoch

# options that may differ within a group: the seed, paths, devices, and those that do not change the result
NOT_COMPARED = ELSEWHERE | {
    "seed",
    "workers",
    "device",
    "log_every",
    "checkpoint_minutes",
    "data",
    "eval_every",
    "compile",
}
BASELINES = ("scratch", "kd", "uhkd")  # rows that are always shown
_MAX_LEVELS = 16  # drawn, to bound the size of the page


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (None for one seed) over the seeds of a group, and their number."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "MeanStd | None":
        """Return the statistics of the values that are not None, or None without any."""
        numbers = [v for v in values if v is not None]
        if not numbers:
            return None
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))

    def percent(self) -> str:
        """Return fractions in percent, as '97.2 ± 0.4'."""
        return f"{100 * self.mean:.1f}" + ("" if self.sd is None else f" ± {100 * self.sd:.1f}")


@dataclass(frozen=True)
class MethodGroup:
    """Runs that differ only in their seed.

    key: an identifier within the page. label: short, unique within the student group. hue: its colour, 0 to 7. dash: its line
    style. teacher: the teacher if there is exactly one. teachers: all of them.
    """

    key: str
    label: str
    runs: tuple[Run, ...]
    hue: int
    dash: int
    teacher: Teacher | None = None
    teachers: tuple[Teacher, ...] = ()

    @property
    def first(self) -> Run:
        """The run that represents the group where a mean is not defined."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """The method of its runs."""
        return self.first.method

    @property
    def failure(self) -> str | None:
        """The error of its first run, if all runs failed."""
        failures = [run.failure for run in self.runs]
        return None if None in failures else failures[0]

    def by_seed(self) -> dict[int, Run]:
        """Return the first run of each seed that has an accuracy."""
        runs: dict[int, Run] = {}
        for run in self.runs:
            if (seed := number(run.recipe, "seed")) is not None and run.metric("val_accuracy") is not None:
                runs.setdefault(int(seed), run)
        return runs

    def repeated(self) -> list[Run]:
        """Return the runs with an accuracy and a seed that `by_seed` leaves out."""
        names = {run.name for run in self.by_seed().values()}
        seeded = [run for run in self.runs if number(run.recipe, "seed") is not None]
        return [run for run in seeded if run.metric("val_accuracy") is not None and run.name not in names]

    def mean_std(self, of: Callable[[Run], float | None]) -> MeanStd | None:
        """Return the statistics of a number over its runs."""
        return MeanStd.of(map(of, self.runs))

    def metric(self, name: str) -> MeanStd | None:
        """Return the statistics of a metric at the last evaluation."""
        return self.mean_std(lambda run: run.metric(name))

    def mean_array(self, name: str, dimensions: int) -> np.ndarray | None:
        """Return the mean of an array over the runs that recorded it with the shape of the first."""
        arrays = [a for run in self.runs if (a := run.array(name, dimensions)) is not None]
        return np.mean([a for a in arrays if a.shape == arrays[0].shape], axis=0) if arrays else None

    def mean_levels(self, name: str, dimensions: int) -> list[np.ndarray]:
        """Return `mean_array` of NAME_0, NAME_1, ..."""
        levels: list[np.ndarray] = []
        while len(levels) < _MAX_LEVELS and (array := self.mean_array(f"{name}_{len(levels)}", dimensions)) is not None:
            levels.append(array)
        return levels


@dataclass(frozen=True)
class StudentGroup:
    """All method groups that train one student on one data set, without the runs that are their teachers.

    groups: the best of scratch, kd and uhkd, then the others, sorted by accuracy.
    """

    key: str
    student: str
    data: str
    groups: tuple[MethodGroup, ...]
    teachers: tuple[Teacher, ...] = ()

    @property
    def title(self) -> str:
        """The student and its data."""
        return f"{self.student} on {self.data}"

    @property
    def missing(self) -> tuple[str, ...]:
        """The `BASELINES` without a run; none are expected for training without labels."""
        if any(run.unlabelled for group in self.groups for run in group.runs):
            return ()
        return tuple(name for name in BASELINES if not any(g.method == name for g in self.groups))

    @cached_property
    def focus(self) -> MethodGroup:
        """The group that figures of one student show: UHKD, otherwise the most accurate distilled one."""
        distilled = [g for g in self.groups if g.method not in ("scratch", "finetune")] or list(self.groups)
        candidates = (
            [g for g in distilled if g.method == "uhkd"]
            or [g for g in distilled if "uhkd" in g.method.split("+")]
            or distilled
        )
        return max(candidates, key=lambda g: s.mean if (s := g.metric("val_accuracy")) else -1.0)

    @cached_property
    def baseline(self) -> MethodGroup | None:
        """The group that the focus is compared with: trained on labels alone, otherwise kd, otherwise None."""
        others = [g for g in self.groups if g is not self.focus]
        return next((g for name in ("scratch", "finetune", "kd") for g in others if g.method == name), None)


@dataclass(frozen=True)
class Report:
    """The content of the page. notes: what was skipped or could not be read."""

    title: str
    student_groups: tuple[StudentGroup, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()


def arrange(runs: Sequence[Run], title: str, notes: Sequence[str] = ()) -> Report:
    """Return the runs as student groups with their teachers."""
    distilled = [run for run in runs if run.method != "finetune"]
    teacher_runs = {run.name: teacher for run in distilled if (teacher := folder_of(run.teacher, runs)) is not None}
    in_ensembles = {name for run in distilled for name, _ in run.teachers}
    teachers = {teacher.name for teacher in teacher_runs.values()}
    teachers |= {teacher.name for name in in_ensembles if (teacher := folder_of(name, runs)) is not None}
    by_student: dict[tuple[str, str], list[Run]] = defaultdict(list)
    fingerprints = _fingerprints(runs)
    for run in runs:
        if run.name not in teachers:
            by_student[fingerprints.get(run.data, run.data), run.student].append(run)
    hues: dict[str, tuple[int, int]] = {}
    student_groups = [_student_group(f"f{i}", group, teacher_runs, hues) for i, group in enumerate(by_student.values())]
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    unfinished = [
        f"{run.name}: {'failed' if run.failure else 'not finished'} ({_progress(run)})"
        + (f": {run.failure}" if run.failure else "")
        for run in runs
        if not run.finished
    ]
    repeated = [
        f"{run.name}: {group.label} has an earlier run with its seed, so paired differences leave it out"
        for student_group in student_groups
        for group in student_group.groups
        for run in group.repeated()
    ]
    return Report(title, tuple(student_groups), tuple(runs), (*notes, *unfinished, *repeated, *problems))


def _fingerprints(runs: Sequence[Run]) -> dict[str, str]:
    """Return the data fingerprint for each data name that has exactly one: an unfinished run has only the name."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        if run.finished:
            by_name[text(run.recipe.get("data"), "")].add(run.data)
    return {name: prints.pop() for name, prints in by_name.items() if len(prints) == 1}


def _progress(run: Run) -> str:
    epochs, done = number(run.recipe, "epochs"), number(run.rows[-1], "epoch") if run.rows else 0
    return f"{done or 0:.0f} of {epochs:.0f} epochs" if epochs else "no epoch yet"


def _student_group(
    key: str, runs: Sequence[Run], teacher_runs: dict[str, Run], hues: dict[str, tuple[int, int]]
) -> StudentGroup:
    by_recipe: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        options = {k: v for k, v in run.options.items() if k not in NOT_COMPARED | {"teacher_views"}}
        by_recipe[json.dumps([options, run.method], sort_keys=True, default=str)].append(run)
    groups = []
    for i, (label, seeds) in enumerate(_in_order(_labelled(list(by_recipe.values())))):
        hue, dash = hues.setdefault(label, hue_of(label, len({*hues} - {*BASELINES})))
        teacher = teacher_of(seeds, teacher_runs)
        teachers = teachers_of(seeds) if teacher is None else (teacher,)
        groups.append(MethodGroup(f"{key}g{i}", label, tuple(seeds), hue, dash, teacher, teachers))
    by_name: dict[str, Teacher] = {}
    for teacher in (teacher for group in groups for teacher in group.teachers):
        if teacher.name not in by_name or "accuracy" in teacher.metrics:
            by_name[teacher.name] = teacher
    return StudentGroup(key, runs[0].student, runs[0].data_name, tuple(groups), tuple(by_name.values()))


def _in_order(labelled: Sequence[tuple[str, list[Run]]]) -> list[tuple[str, list[Run]]]:
    """Return the best group of each baseline method, then the others, sorted by accuracy."""

    def accuracy(runs: Sequence[Run]) -> float:
        mean_std = MeanStd.of(run.metric("val_accuracy") for run in runs)
        return -1.0 if mean_std is None else mean_std.mean

    best = sorted(labelled, key=lambda group: (-accuracy(group[1]), group[0]))
    by_method = (next((group for group in best if group[1][0].method == name), None) for name in BASELINES)
    leading = [group for group in by_method if group is not None]
    return leading + [group for group in best if group not in leading]


def _labelled(groups: Sequence[list[Run]]) -> list[tuple[str, list[Run]]]:
    """Return each group with a unique short label: its method, otherwise its folder, otherwise with the first run's name."""
    methods = [runs[0].method for runs in groups]
    # variants of one method in a comparison are named by their folder
    labels = [
        folder if (folder := _parent(runs)) and methods.count(method) > 1 else method
        for runs, method in zip(groups, methods, strict=True)
    ]
    unique = [
        label if labels.count(label) == 1 else f"{label} ({runs[0].name})"
        for label, runs in zip(labels, groups, strict=True)
    ]
    return [
        (f"{label}, best epoch" if any(best_epoch(run.result) for run in runs) else label, runs)
        for label, runs in zip(unique, groups, strict=True)
    ]


def _parent(runs: Sequence[Run]) -> str | None:
    """Return the name of the folder that contains the runs, if it is one and they are its seeds."""
    parents = {PurePath(run.name).parent for run in runs}
    seeds = all(PurePath(run.name).name.startswith("seed-") for run in runs)
    return parents.pop().name if len(parents) == 1 and seeds else None
