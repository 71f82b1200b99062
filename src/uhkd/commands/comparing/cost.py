"""`compare --cost`: time, memory and FLOPs of one training step of each method, relative to scratch and KD."""

import contextlib
import gc
import io
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t

from uhkd.commands.comparing.cost_tables import document, print_costs
from uhkd.commands.comparing.memory import peak_memory
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.step_benchmark import BenchmarkStep, StepFactory
from uhkd.console import log_info
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import count_flops
from uhkd.recipe import CompareRecipe
from uhkd.runs import RunFolder, environment, write_atomically
from uhkd.training import CachedTeacher
from uhkd.training.fit import count_parameters
from uhkd.training.oom import memory_advice

BASELINES = ("scratch", "kd")
WARMUP = 2
BATCHES = 4


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of paired ratios with its 95 % interval."""

    mean: float
    low: float
    high: float


def measure_costs(recipe: CompareRecipe, plan: Plan, out: Path) -> dict[str, Any]:
    """Measure a step of each method, scratch and KD included, for each pair; write cost.json and cost.md; return the former.

    A method that cannot be built is listed with the reason.

    Raises:
        UhkdError: scratch or KD cannot be built for a pair, or memory is insufficient.
    """
    if not set(BASELINES) <= set(recipe.methods):
        methods = tuple(dict.fromkeys((*BASELINES, *recipe.methods)))
        plan = make_plan(recipe.model_copy(update={"methods": methods}), out)
    untrained = {str(out / task.name): task.options for task in plan.tasks if "model" in task.options}
    options = {task.name: task.options for task in plan.tasks}
    pairs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, cell in plan.cells.items():
        if cell.seed == 0:
            pairs.setdefault(cell.pair, {})[cell.method] = options[name]
    costs = {
        "title": recipe.title or "Cost of one training step",
        "rounds": recipe.rounds,
        "warmup": WARMUP,
        "batches": BATCHES,
        "environment": {k: v for k, v in environment().items() if k != "command"},  # the command contains paths
        "pairs": {
            pair: _measure_pair(pair, recipes, untrained, recipe.rounds, recipe.jobs) for pair, recipes in pairs.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write_json("cost.json", costs)
    write_atomically(out / "cost.md", document(costs))
    print_costs(costs)
    log_info(f"the whole table is in {out / 'cost.md'}, all measurements in {out / 'cost.json'}")
    return costs


def geometric_mean(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the geometric mean of ours / theirs over two rounds or more, with Student's t interval of the logarithms."""
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / len(logs) ** 0.5
    half = error * float(t.ppf(0.975, len(logs) - 1))
    return Ratio(*(math.exp(x) for x in (mean, mean - half, mean + half)))


def time_steps(
    steps: Mapping[str, Callable[[int], None]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return seconds by method and round; each round takes one step of every method in a shuffled order."""
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    rng, order = random.Random(0), list(steps)
    gc_enabled = gc.isenabled()
    gc.disable()  # a collection would be charged to the method that happens to trigger it
    try:
        for number in range(rounds):
            gc.collect()
            if number % 2:
                order.reverse()  # in two rounds each method precedes each other method once
            else:
                rng.shuffle(order)  # one generator: the first draws of Random(0), Random(1), ... are very similar
            for label in order:
                _synchronize()
                began = clock()
                steps[label](number)
                _synchronize()
                seconds[label].append(clock() - began)
    finally:
        if gc_enabled:
            gc.enable()
    return seconds


def _measure_pair(
    pair: str,
    recipes: Mapping[str, Mapping[str, Any]],
    untrained: Mapping[str, Mapping[str, Any]],
    rounds: int,
    jobs: int,
) -> dict[str, Any]:
    """Measure every method of one pair; return the measurements, and the reasons of missing methods."""
    methods: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    steps: dict[str, BenchmarkStep] = {}
    factory = StepFactory(untrained, BATCHES)
    recipes = {label: recipes[label] for label in dict.fromkeys((*BASELINES, *recipes))}  # baselines first
    log_info(f"{pair}: building one step of each of {', '.join(recipes)}")
    # all learners of a pair are in memory at the same time, so that their steps can be interleaved
    with memory_advice(
        f"{pair}: the learners of all methods do not fit into memory together; measure fewer methods at a time "
        "(--methods; scratch and kd are always included), or use a smaller batch (--overrides batch_size=N)"
    ):
        with _unique_lines():
            for label, recipe in recipes.items():
                try:
                    steps[label] = step = factory.step(recipe)
                    for number in range(WARMUP):
                        step(number)
                    methods[label] = _facts(step)
                except UhkdError as error:
                    if label in BASELINES:
                        raise UhkdError(
                            f"{pair} by {label}, a baseline of this comparison, cannot be built: {error}"
                        ) from error
                    steps.pop(label, None)
                    missing[label] = str(error)
        log_info(f"{pair}: {rounds} rounds with one step of each method")
        seconds = time_steps(steps, rounds)
    del factory, step
    steps.clear()  # free memory for the processes below
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log_info(f"{pair}: measuring peak memory, in one process per method")
    with ThreadPoolExecutor(jobs) as processes:  # parallel processes do not affect each other's peak
        peaks = list(processes.map(lambda label: peak_memory(recipes[label], untrained), methods))
    for (label, facts), (peak, why) in zip(methods.items(), peaks, strict=True):
        facts |= {"seconds": seconds[label], "median_seconds": statistics.median(seconds[label])}
        facts |= {"peak_bytes": peak} | ({"no_peak": why} if why else {})
    for facts in methods.values():
        for base in BASELINES:
            facts[f"to_{base}"] = _relative_cost(facts, methods[base])
    return {"methods": methods, "missing": missing}


def _facts(step: BenchmarkStep) -> dict[str, Any]:
    setup = step.setup
    recipe = setup.recipe
    teacher = next((network.config.name for network in setup.networks), None)
    return {  # without paths of this machine
        "recipe": recipe.model_dump(mode="json", exclude={"out", "resume", "data", "teacher", "teacher_cache"}),
        "data": setup.data.name,
        "data_fingerprint": setup.data.fingerprint,
        "device": setup.fabric.device.type,
        "precision": recipe.precision,
        "threads": torch.get_num_threads(),
        "batch_size": recipe.batch_size,
        "grad_accum_steps": recipe.grad_accum_steps,
        "image_size": list(step.size),
        "student_parameters": count_parameters(setup.learner.student.module),
        "teacher": "stored teacher outputs" if isinstance(setup.teacher, CachedTeacher) else teacher,
        "extra_parameters": step.extra_parameters,
        "gflop_per_image": count_flops(lambda: step(0)) / recipe.batch_size / 1e9,
    }


def _relative_cost(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return time, FLOPs and memory relative to a baseline."""
    relative: dict[str, Any] = {
        "time": asdict(geometric_mean(ours["seconds"], theirs["seconds"])),
        "flops": ours["gflop_per_image"] / theirs["gflop_per_image"],
        "memory": None,
        "extra_mib": None,
    }
    a, b = ours["peak_bytes"], theirs["peak_bytes"]
    if a is not None and b is not None:
        relative |= {"memory": a / b, "extra_mib": (a - b) / 2**20}
    return relative


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _unique_lines() -> Iterator[None]:
    """Log each distinct line of standard error of the context once, at its end."""
    buffer = io.StringIO()
    try:
        with contextlib.redirect_stderr(buffer):
            yield
    finally:
        for line in dict.fromkeys(buffer.getvalue().splitlines()):
            log_info(line)
