"""Runs beside each other: seeds of one recipe are a group, groups that train one network on one data set a family."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from uhkd.reporting.folders import Run, number, text
from uhkd.runs import ELSEWHERE

# what differs between repetitions of one recipe, or says where and how comfortably it ran
PLACES = ELSEWHERE | {"seed", "workers", "device", "log_every", "checkpoint_minutes", "data", "eval_every", "compile"}
BASELINES = ("scratch", "kd", "uhkd")  # a reader looks for these, run or not
HUES = 8
_LEVELS = 16  # that are drawn: a page has an end
_METRICS = ("accuracy", "top5", "nll", "ece")


@dataclass(frozen=True)
class Spread:
    """A number over the seeds of a group: mean, sample sd (None: one seed) and how many."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of those that are known; None where none is."""
        known = [v for v in values if v is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


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


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    key: an identifier within the page. label: short, unique within the family. hue: 0 ... 7, its colour, and dash: its line.
    """

    key: str
    label: str
    runs: tuple[Run, ...]
    hue: int
    dash: int
    teacher: Teacher | None = None

    @property
    def first(self) -> Run:
        """The run that stands for the group where a mean makes no sense."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """The method of its runs."""
        return self.first.method

    def spread(self, of: Callable[[Run], float | None]) -> Spread | None:
        """A number over its runs."""
        return Spread.of(map(of, self.runs))

    def metric(self, name: str) -> Spread | None:
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
class Family:
    """All groups that train one network on one data set, teachers that are runs themselves apart.

    groups: the best by scratch, kd and uhkd, then the others, the most accurate first.
    """

    key: str
    student: str
    data: str
    groups: tuple[Group, ...]
    teachers: tuple[Teacher, ...] = ()

    @property
    def title(self) -> str:
        """The network on the data."""
        return f"{self.student} on {self.data}"

    @property
    def missing(self) -> tuple[str, ...]:
        """Rows a reader looks for that nobody ran."""
        return tuple(name for name in BASELINES if not any(g.method == name for g in self.groups))

    @cached_property
    def focus(self) -> Group:
        """The group that figures of one student are about: UHKD, or else the most accurate that learned from a teacher."""
        taught = [g for g in self.groups if g.method not in ("scratch", "finetune")] or list(self.groups)
        plain = (
            [g for g in taught if g.method == "uhkd"] or [g for g in taught if "uhkd" in g.method.split("+")] or taught
        )
        return max(plain, key=lambda g: s.mean if (s := g.metric("val_accuracy")) else -1.0)

    @cached_property
    def baseline(self) -> Group | None:
        """What the focus is compared with: the same network from labels alone, or None."""
        rest = [g for g in self.groups if g is not self.focus]
        return next((g for name in ("scratch", "finetune", "kd") for g in rest if g.method == name), None)


@dataclass(frozen=True)
class Report:
    """All that the page shows. notes: what was passed over or could not be read."""

    title: str
    families: tuple[Family, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = field(default=())


def arrange(runs: Sequence[Run], title: str, notes: Sequence[str] = ()) -> Report:
    """Runs into groups and families, each with its teachers."""
    distilled = [run for run in runs if run.method != "finetune"]
    taught = {run.name: found for run in distilled if (found := _folder_of(run.teacher, runs)) is not None}
    teachers = {found.name for found in taught.values()} if distilled else set()
    kinds: dict[tuple[str, str], list[Run]] = {}
    prints = _prints(runs)
    for run in runs:
        if run.name not in teachers:
            kinds.setdefault((prints.get(run.data, run.data), run.student), []).append(run)
    hues: dict[str, tuple[int, int]] = {}
    families = []
    for number_, own in enumerate(kinds.values()):
        families.append(_family(f"f{number_}", own, taught, hues))
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    unfinished = [f"{run.name}: not finished ({_progress(run)})" for run in runs if not run.finished]
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


def _family(key: str, runs: Sequence[Run], taught: dict[str, Run], hues: dict[str, tuple[int, int]]) -> Family:
    alike: dict[str, list[Run]] = {}
    for run in runs:
        words = {k: v for k, v in run.words.items() if k not in PLACES}
        words.pop("teacher_views", None)
        alike.setdefault(json.dumps([words, run.method], sort_keys=True, default=str), []).append(run)
    named = _in_order(list(zip(_labels(list(alike.values())), alike.values(), strict=True)))
    groups = []
    for place, (label, own) in enumerate(named):
        hue, dash = hues.setdefault(label, _hue(label, len({*hues} - {*BASELINES})))
        groups.append(Group(f"{key}g{place}", label, tuple(own), hue, dash, _teacher(own, taught)))
    teachers = {g.teacher.name: g.teacher for g in groups if g.teacher is not None}
    return Family(key, runs[0].student, runs[0].data_name, tuple(groups), tuple(teachers.values()))


def _in_order(named: Sequence[tuple[str, list[Run]]]) -> list[tuple[str, list[Run]]]:
    """The best by each method that readers look for, then the others, the most accurate first."""

    def accuracy(pair: tuple[str, list[Run]]) -> float:
        spread = Spread.of(run.metric("val_accuracy") for run in pair[1])
        return -1.0 if spread is None else spread.mean

    best = sorted(named, key=lambda pair: (-accuracy(pair), pair[0]))
    firsts = [next((pair for pair in best if pair[1][0].method == name), None) for name in BASELINES]
    leading = [pair for pair in firsts if pair is not None]
    return [*leading, *(pair for pair in best if not any(pair is one for one in leading))]


def _hue(label: str, count: int) -> tuple[int, int]:
    """A colour and a kind of line: the same for the same method everywhere; after eight the lines change."""
    fixed = {"uhkd": (0, 0), "kd": (1, 0), "scratch": (2, 0)}
    return fixed.get(label) or (3 + count % (HUES - 3), count // (HUES - 3) % 4)


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


def _folder_of(said: str | None, runs: Sequence[Run]) -> Run | None:
    """The run among these that a recipe names as its teacher, also where all of them were moved together."""
    if said is None:
        return None
    place = Path(said)
    candidates = [run for run in runs if run.method == "finetune" or run.finished]
    exact = [run for run in candidates if place.is_absolute() and run.path == place]
    if exact or len(place.parts) < 2:
        return exact[0] if exact else None
    for parts in (3, 2):
        near = [run for run in candidates if run.path.parts[-parts:] == place.parts[-parts:]]
        if len(near) == 1:
            return near[0]
    return None


def _teacher(runs: Sequence[Run], taught: dict[str, Run]) -> Teacher | None:
    """What its own run folder says of a teacher, if that is here and of the same images, and what the students noted."""
    run = next((r for r in runs if r.teacher is not None and r.method != "scratch"), None)
    if run is None:
        return None
    assert run.teacher is not None
    own = taught.get(run.name)
    # another split of the images would make its predictions those of other images
    same = own is not None and own.data == run.data
    shown = own if same else None
    noted = next((r for r in runs if r.predictions("teacher") is not None), None)
    said = {k: number(run.result, "teacher_metrics", k) for k in _METRICS}
    if shown is not None and not any(v is not None for v in said.values()):
        said = {k: shown.metric(f"val_{k}") for k in _METRICS}
    metrics = {k: v for k, v in said.items() if v is not None}

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
