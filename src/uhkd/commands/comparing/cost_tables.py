"""Tables of measured costs: cost.md and the terminal."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from uhkd.commands.comparing.tables import Rows, inline, markdown
from uhkd.console import escape, print_result, print_table
from uhkd.recipe.old_names import RECIPE_KEYS, rename_keys

_HEAD = ["method", "step ms", "x scratch [95 %]", "x kd [95 %]", "peak MiB", "memory x kd", "MiB over kd"]
_HEAD += ["GFLOP an image", "GFLOP x kd", "extra parameters"]
_ON_TERMINAL = (0, 1, 2, 3, 5, 8)


def cost_rows(measured: Mapping[str, Any]) -> Rows:
    """Return the header and one row per method of a pair; a method that could not be built has "-" in all columns."""
    rows = [[label, *_cells(facts)] for label, facts in measured["methods"].items()]
    return [_HEAD, *rows, *([label, *["-"] * (len(_HEAD) - 1)] for label in measured["missing"])]


def document(costs: Mapping[str, Any]) -> str:
    """Return cost.md: one table per pair, the methods missing in it, and how the costs were measured."""
    blocks = [f"# {inline(costs['title'])}"]
    for pair, measured in costs["pairs"].items():
        blocks += [f"## {inline(pair)}", setting(measured), markdown(cost_rows(measured)), *_reasons(measured)]
    return "\n\n".join([*blocks, note(costs)]) + "\n"


def print_costs(costs: Mapping[str, Any]) -> None:
    """Print the tables to standard output."""
    for pair, measured in costs["pairs"].items():
        rows = [[row[i] for i in _ON_TERMINAL] for row in cost_rows(measured)]
        table = Table(title=escape(f"{costs['title']}: {pair}"))
        for head, *cells in zip(*rows, strict=True):
            table.add_column(head, min_width=max(map(len, cells)))  # a header may wrap, a number may not
        for row in rows[1:]:
            table.add_row(*map(escape, row))
        print_table(table)
        for line in (setting(measured), *_reasons(measured)):
            print_result(line)


def note(costs: Mapping[str, Any]) -> str:
    """Describe how, and on which machine, the costs were measured."""
    machine = costs["environment"]
    return (
        f"Interleaved: {costs['rounds']} rounds after {costs['warmup']} warm-up steps; in each round every method takes one "
        "step on the same images, in a shuffled order. A step leads from a loaded batch to new weights: teacher, student, "
        "method, backward pass, clipping, optimizer; loading of images is excluded. Step ms: median. x: geometric mean of the "
        "ratios within rounds [95 % interval, Student's t over rounds]. Peak MiB: two steps in a new process per method; on a "
        "CPU the whole process with Python, libraries and images (freed memory is returned at once), on a GPU its tensors. "
        "GFLOP: matrix products, convolutions and attention, forward and backward; FFTs, other decompositions and "
        "elementwise operations are not counted. "
        f"Networks with random weights (run folders with their weights). {_hardware(machine)}, {machine['threads']} CPU "
        f"threads, torch {machine['versions']['torch']}. On a shared machine compare ratios, not milliseconds."
    )


def _cells(facts: Mapping[str, Any]) -> list[str]:
    kd, peak = facts["to_kd"], facts["peak_bytes"]
    measured = [f"{peak / 2**20:.0f}", f"{kd['memory']:.2f}", f"{kd['extra_mib']:+.0f}"] if kd["memory"] else ["-"] * 3
    return [
        f"{1000 * facts['median_seconds']:.3g}",
        _interval(facts["to_scratch"]["time"]),
        _interval(kd["time"]),
        *measured,
        f"{facts['gflop_per_image']:.3g}",
        f"{kd['flops']:.2f}",
        f"{facts['extra_parameters']:,}",
    ]


def _interval(ratio: Mapping[str, float]) -> str:
    """Format a ratio as '1.20 [1.15, 1.26]', or without the interval if that is empty (a baseline with itself)."""
    if ratio["low"] == ratio["high"]:
        return f"{ratio['mean']:.2f}"
    return f"{ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def setting(measured: Mapping[str, Any]) -> str:
    """Describe networks, batch and precision of a pair; values that differ between methods are separated by slashes."""
    methods = [rename_keys(facts, RECIPE_KEYS) for facts in measured["methods"].values()]

    def values(key: str) -> str:
        return " / ".join(dict.fromkeys(str(m[key]) for m in methods if m[key] is not None))

    students = " / ".join(dict.fromkeys(m["recipe"]["student"] for m in methods))
    sizes = " / ".join(dict.fromkeys("x".join(map(str, m["image_size"])) for m in methods))
    parts = values("grad_accum_steps")
    return (
        f"{students}, teacher {values('teacher')}; batch {values('batch_size')}"
        f"{'' if parts == '1' else f' in {parts} parts'}, images {sizes}, {values('precision')} on {values('device')}"
    )


def _reasons(measured: Mapping[str, Any]) -> list[str]:
    lines = [f"- {label} cannot be built: {' '.join(why.split())}" for label, why in measured["missing"].items()]
    methods = measured["methods"].items()
    lines += [f"- peak memory of {label}: {facts['no_peak']}" for label, facts in methods if "no_peak" in facts]
    return ["\n".join(lines)] if lines else []


def _hardware(machine: Mapping[str, Any]) -> str:
    if machine["gpu"]:
        return machine["gpu"]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or machine["machine"])
