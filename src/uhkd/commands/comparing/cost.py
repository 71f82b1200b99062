"""`compare --cost`: what one training step costs by each method, beside scratch and KD. Nothing is trained."""

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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uhkd.commands.comparing.costs import document, print_costs
from uhkd.commands.comparing.memory import peak_memory
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.step import BenchmarkStep, StepFactory
from uhkd.console import log_info
from uhkd.errors import UhkdError
from uhkd.recipe import CompareRecipe
from uhkd.runs import RunFolder, environment, write_atomically
from uhkd.training import CachedTeacher
from uhkd.training.oom import memory_advice
from uhkd.training.setup import Setup

BASELINES = ("scratch", "kd")
WARMUP = 2
BATCHES = 4


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of paired ratios, and its 95 % interval."""

    mean: float
    low: float
    high: float


def measure_costs(recipe: CompareRecipe, plan: Plan, out: Path) -> dict[str, Any]:
    """Measure a step of every method of every pair (and of scratch and KD); writes and returns cost.json, and cost.md.

    Raises:
        UhkdError: when scratch or KD cannot be built for a pair, or memory does not suffice. Any other method that cannot
            be built is listed with its reason.
    """
    if not set(BASELINES) <= set(recipe.methods):
        plan = make_plan(
            recipe.model_copy(update={"methods": tuple(dict.fromkeys((*BASELINES, *recipe.methods)))}), out
        )
    untrained = {str(out / task.name): task.options for task in plan.tasks if "model" in task.options}
    recipes = {task.name: task.options for task in plan.tasks}
    pairs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, cell in plan.cells.items():
        if cell.seed == 0:
            pairs.setdefault(cell.pair, {})[cell.method] = recipes[name]
    costs = {
        "title": recipe.title or "Cost of one training step",
        "rounds": recipe.rounds,
        "warmup": WARMUP,
        "batches": BATCHES,
        "environment": {k: v for k, v in environment().items() if k != "command"},  # which names places on this machine
        "pairs": {
            pair: _measure_pair(pair, _baselines_first(own), untrained, recipe.rounds, recipe.jobs)
            for pair, own in pairs.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write_json("cost.json", costs)
    write_atomically(out / "cost.md", document(costs))
    print_costs(costs)
    log_info(f"what these numbers rest on is in {out / 'cost.json'}, the whole table in {out / 'cost.md'}")
    return costs


def geometric_mean(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of ours / theirs round by round, with Student's t interval on the logarithms; two rounds or more."""
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / len(logs) ** 0.5
    half = error * float(t.ppf(0.975, len(logs) - 1))
    return Ratio(*(math.exp(x) for x in (mean, mean - half, mean + half)))


def time_steps(
    steps: Mapping[str, Callable[[int], None]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds by method and round; each round takes one step of every method, in an order of its own."""
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    shuffled, order = random.Random(0), list(steps)
    collected = gc.isenabled()
    gc.disable()  # a collection is paid for by whoever happens to meet it
    try:
        for number in range(rounds):
            gc.collect()
            if number % 2:
                order.reverse()  # over two rounds every method has come before every other once
            else:
                shuffled.shuffle(order)  # by one generator: the first draws of Random(0), Random(1), ... are much alike
            for label in order:
                _wait()
                began = clock()
                steps[label](number)
                _wait()
                seconds[label].append(clock() - began)
    finally:
        if collected:
            gc.enable()
    return seconds


def count_flops(step: Callable[[int], None]) -> int:
    """FLOPs of one step: matrix products, convolutions and attention, forward and backward."""
    # attention in its plain form: fused kernels repeat part of their work, each device's in another way
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(0)
    return counter.get_total_flops()


def _measure_pair(
    pair: str,
    recipes: Mapping[str, Mapping[str, Any]],
    untrained: Mapping[str, Mapping[str, Any]],
    rounds: int,
    jobs: int,
) -> dict[str, Any]:
    """Facts and measurements of every method of one pair, and why others are missing."""
    methods: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    steps: dict[str, BenchmarkStep] = {}
    factory = StepFactory(untrained, BATCHES)
    log_info(f"{pair}: building a step of each of {', '.join(recipes)}")
    # all learners of a pair are in memory together: only so can their steps be interleaved
    with memory_advice(
        lambda: (
            f"{pair}: the learners of all methods do not fit into memory together; measure fewer at a time (--methods; "
            "scratch and kd always come along), or a smaller batch (--overrides batch_size=N)"
        )
    ):
        with _each_line_once():
            for label, own in recipes.items():
                try:
                    steps[label] = step = factory.step(own)
                    for number in range(WARMUP):
                        step(number)
                    methods[label] = _facts(step)
                except ValueError as error:
                    if label in BASELINES:
                        raise UhkdError(f"{pair} by {label}, to which the others are compared: {error}") from error
                    steps.pop(label, None)
                    missing[label] = str(error)
        log_info(f"{pair}: {rounds} rounds, a step of each in every one")
        seconds = time_steps(steps, rounds)
    del factory, step
    steps.clear()  # the processes below shall find the memory free
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log_info(f"{pair}: peak memory, in a fresh process for each method")
    with ThreadPoolExecutor(jobs) as processes:  # a process's peak is its own, whatever runs beside it
        peaks = list(processes.map(lambda label: peak_memory(recipes[label], untrained), methods))
    for (label, facts), (peak, why) in zip(methods.items(), peaks, strict=True):
        facts |= {"seconds": seconds[label], "median_seconds": statistics.median(seconds[label])}
        facts |= {"peak_bytes": peak} | ({"no_peak": why} if why else {})
    for facts in methods.values():
        for base in BASELINES:
            facts[f"to_{base}"] = _compared(facts, methods[base])
    return {"methods": methods, "missing": missing}


def _facts(step: BenchmarkStep) -> dict[str, Any]:
    setup = step.setup
    recipe = setup.recipe
    return {
        "recipe": recipe.model_dump(
            mode="json", exclude={"out", "resume", "data", "teacher", "teacher_cache"}
        ),  # no places on this machine
        "data": setup.data.name,
        "data_fingerprint": setup.data.fingerprint,
        "device": setup.fabric.device.type,
        "precision": recipe.precision,
        "threads": torch.get_num_threads(),
        "batch_size": recipe.batch_size,
        "accumulate": recipe.grad_accum_steps,
        "image_size": list(step.size),
        "student_parameters": sum(p.numel() for p in setup.learner.student.module.parameters()),
        "teacher": _named(setup),
        "extra_parameters": step.extra_parameters,
        "gflop_per_image": count_flops(step) / recipe.batch_size / 1e9,
    }


def _named(setup: Setup) -> str | None:
    if isinstance(setup.teacher, CachedTeacher):
        return "stored signals"
    return next((network.card.name for network in setup.networks), None)


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Time, FLOPs and memory relative to a baseline's."""
    compared: dict[str, Any] = {
        "time": asdict(geometric_mean(ours["seconds"], theirs["seconds"])),
        "flops": ours["gflop_per_image"] / theirs["gflop_per_image"],
        "memory": None,
        "extra_mib": None,
    }
    a, b = ours["peak_bytes"], theirs["peak_bytes"]
    if a is not None and b is not None:
        compared |= {"memory": a / b, "extra_mib": (a - b) / 2**20}
    return compared


def _baselines_first(recipes: Mapping[str, Any]) -> dict[str, Any]:
    return {label: recipes[label] for label in dict.fromkeys((*BASELINES, *recipes))}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _each_line_once() -> Iterator[None]:
    """The lines of every method's preparations, without repetitions."""
    buffer = io.StringIO()
    try:
        with contextlib.redirect_stderr(buffer):
            yield
    finally:
        for line in dict.fromkeys(buffer.getvalue().splitlines()):
            log_info(line)
