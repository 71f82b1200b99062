"""Runs beside each other: seeds of one recipe are a group, groups that train one network on one data set a family."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath

import numpy as np

from uhkd.reporting.figure_data import hue_of
from uhkd.reporting.run_data import Run, number, text
from uhkd.reporting.teachers import Teacher, folder_of, teacher_of, teachers_of
from uhkd.runs import ELSEWHERE

# what differs between repetitions of one recipe, or says where and how comfortably it ran
PLACES = ELSEWHERE | {"seed", "workers", "device", "log_every", "checkpoint_minutes", "data", "eval_every", "compile"}
BASELINES = ("scratch", "kd", "uhkd")  # a reader looks for these, run or not
_LEVELS = 16  # that are drawn: a page has an end


@dataclass(frozen=True)
class MeanStd:
    """A number over the seeds of a group: mean, sample sd (None: one seed) and how many."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "MeanStd | None":
        """Of those that are known; None where none is."""
        known = [v for v in values if v is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class MethodGroup:
    """Runs that differ in their seed alone.

    key: an identifier within the page. label: short, unique within the family. hue: 0 ... 7, its colour, and dash: its line.
    teacher: the only one it learned from, and teachers: all.
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
        """The run that stands for the group where a mean makes no sense."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """The method of its runs."""
        return self.first.method

    @property
    def failure(self) -> str | None:
        """Why its runs failed, if all did."""
        failures = [run.failure for run in self.runs]
        return failures[0] if all(why is not None for why in failures) else None

    def by_seed(self) -> dict[int, Run]:
        """One run a seed, the first of those that have an accuracy."""
        found: dict[int, Run] = {}
        for run in self.runs:
            if (seed := number(run.recipe, "seed")) is not None and run.metric("val_accuracy") is not None:
                found.setdefault(int(seed), run)
        return found

    def repeated(self) -> list[Run]:
        """Runs with an accuracy whose seed another one stands for, see `by_seed`."""
        newest = {run.name for run in self.by_seed().values()}
        known = [run for run in self.runs if number(run.recipe, "seed") is not None]
        return [run for run in known if run.metric("val_accuracy") is not None and run.name not in newest]

    def spread(self, of: Callable[[Run], float | None]) -> MeanStd | None:
        """A number over its runs."""
        return MeanStd.of(map(of, self.runs))

    def metric(self, name: str) -> MeanStd | None:
        """A metric of the validation part after the last evaluation."""
        return self.spread(lambda run: run.metric(name))

    def mean_array(self, name: str, dimensions: int) -> np.ndarray | None:
        """An array's mean over those runs that recorded it in one shape."""
        found = [a for run in self.runs if (a := run.array(name, dimensions)) is not None]
        alike = [a for a in found if a.shape == found[0].shape]
        return np.mean(alike, axis=0) if alike else None

    def mean_levels(self, name: str, dimensions: int) -> list[np.ndarray]:
        """NAME_0, NAME_1, ... as `mean_array` gives them."""
        found: list[np.ndarray] = []
        while len(found) < _LEVELS and (one := self.mean_array(f"{name}_{len(found)}", dimensions)) is not None:
            found.append(one)
        return found


@dataclass(frozen=True)
class StudentGroup:
    """All groups that train one network on one data set, teachers that are runs themselves apart.

    groups: the best by scratch, kd and uhkd, then the others, the most accurate first.
    """

    key: str
    student: str
    data: str
    groups: tuple[MethodGroup, ...]
    teachers: tuple[Teacher, ...] = ()

    @property
    def title(self) -> str:
        """The network on the data."""
        return f"{self.student} on {self.data}"

    @property
    def missing(self) -> tuple[str, ...]:
        """Rows a reader looks for that nobody ran; without labels there are none to look for."""
        if any(run.unlabelled for group in self.groups for run in group.runs):
            return ()
        return tuple(name for name in BASELINES if not any(g.method == name for g in self.groups))

    @cached_property
    def focus(self) -> MethodGroup:
        """The group that figures of one student are about: UHKD, or else the most accurate that learned from a teacher."""
        teacher_runs = [g for g in self.groups if g.method not in ("scratch", "finetune")] or list(self.groups)
        plain = (
            [g for g in teacher_runs if g.method == "uhkd"]
            or [g for g in teacher_runs if "uhkd" in g.method.split("+")]
            or teacher_runs
        )
        return max(plain, key=lambda g: s.mean if (s := g.metric("val_accuracy")) else -1.0)

    @cached_property
    def baseline(self) -> MethodGroup | None:
        """What the focus is compared with: the same network from labels alone, or None."""
        rest = [g for g in self.groups if g is not self.focus]
        return next((g for name in ("scratch", "finetune", "kd") for g in rest if g.method == name), None)


@dataclass(frozen=True)
class Report:
    """All that the page shows. notes: what was passed over or could not be read."""

    title: str
    families: tuple[StudentGroup, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = field(default=())


def arrange(runs: Sequence[Run], title: str, notes: Sequence[str] = ()) -> Report:
    """Runs into groups and families, each with its teachers."""
    distilled = [run for run in runs if run.method != "finetune"]
    teacher_runs = {run.name: found for run in distilled if (found := folder_of(run.teacher, runs)) is not None}
    teachers = {found.name for found in teacher_runs.values()} if distilled else set()
    several = {name for run in distilled for name, _ in run.teachers}
    teachers |= {found.name for name in several if (found := folder_of(name, runs)) is not None}
    kinds: dict[tuple[str, str], list[Run]] = {}
    prints = _prints(runs)
    for run in runs:
        if run.name not in teachers:
            kinds.setdefault((prints.get(run.data, run.data), run.student), []).append(run)
    hues: dict[str, tuple[int, int]] = {}
    families = []
    for number_, own in enumerate(kinds.values()):
        families.append(_family(f"f{number_}", own, teacher_runs, hues))
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    unfinished = [
        f"{run.name}: failed ({_progress(run)}): {run.failure}"
        if run.failure
        else f"{run.name}: not finished ({_progress(run)})"
        for run in runs
        if not run.finished
    ]
    unfinished += [
        f"{run.name}: its seed was run before in {group.label}, so paired differences leave it out"
        for family in families
        for group in family.groups
        for run in group.repeated()
    ]
    return Report(title, tuple(families), tuple(runs), (*notes, *unfinished, *problems))


def _prints(runs: Sequence[Run]) -> dict[str, str]:
    """The fingerprint of data known by its name alone, as that of a run which is not finished, where only one is known."""
    known: dict[str, set[str]] = {}
    for run in runs:
        if run.finished:
            known.setdefault(text(run.recipe.get("data"), ""), set()).add(run.data)
    return {name: found.pop() for name, found in known.items() if len(found) == 1}


def _progress(run: Run) -> str:
    epochs, done = number(run.recipe, "epochs"), number(run.rows[-1], "epoch") if run.rows else 0
    return f"{done or 0:.0f} of {epochs:.0f} epochs" if epochs else "no epoch yet"


def _family(
    key: str, runs: Sequence[Run], teacher_runs: dict[str, Run], hues: dict[str, tuple[int, int]]
) -> StudentGroup:
    alike: dict[str, list[Run]] = {}
    for run in runs:
        options = {k: v for k, v in run.options.items() if k not in PLACES}
        options.pop("teacher_views", None)
        alike.setdefault(json.dumps([options, run.method], sort_keys=True, default=str), []).append(run)
    named = _in_order(list(zip(_labels(list(alike.values())), alike.values(), strict=True)))
    groups = []
    for place, (label, own) in enumerate(named):
        hue, dash = hues.setdefault(label, hue_of(label, len({*hues} - {*BASELINES})))
        alone = teacher_of(own, teacher_runs)
        each = teachers_of(own) if alone is None else (alone,)
        groups.append(MethodGroup(f"{key}g{place}", label, tuple(own), hue, dash, alone, each))
    teachers: dict[str, Teacher] = {}
    for one in (one for group in groups for one in group.teachers):
        if one.name not in teachers or "accuracy" in one.metrics:
            teachers[one.name] = one
    return StudentGroup(key, runs[0].student, runs[0].data_name, tuple(groups), tuple(teachers.values()))


def _in_order(named: Sequence[tuple[str, list[Run]]]) -> list[tuple[str, list[Run]]]:
    """The best by each method that readers look for, then the others, the most accurate first."""

    def accuracy(pair: tuple[str, list[Run]]) -> float:
        spread = MeanStd.of(run.metric("val_accuracy") for run in pair[1])
        return -1.0 if spread is None else spread.mean

    best = sorted(named, key=lambda pair: (-accuracy(pair), pair[0]))
    firsts = [next((pair for pair in best if pair[1][0].method == name), None) for name in BASELINES]
    leading = [pair for pair in firsts if pair is not None]
    return [*leading, *(pair for pair in best if not any(pair is one for one in leading))]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A short name for each group, all different: its method; else its folder; else a number behind it."""
    methods = [runs[0].method for runs in groups]
    folders = [_parent(runs) for runs in groups]
    # a comparison's variants are methods with words of their own: their folder has the name
    short = [folder if folder and methods.count(m) > 1 else m for folder, m in zip(folders, methods, strict=True)]
    return [
        label if short.count(label) == 1 else f"{label} ({runs[0].name})"
        for label, runs in zip(short, groups, strict=True)
    ]


def _parent(runs: Sequence[Run]) -> str | None:
    parents = {PurePath(run.name).parent for run in runs}
    seeds = all(PurePath(run.name).name.startswith("seed-") for run in runs)
    return parents.pop().name if len(parents) == 1 and seeds else None
