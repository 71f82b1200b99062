"""Measured costs as tables: cost.md, and what fits a terminal."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from uhkd.commands.comparing.tables import Rows, inline, markdown
from uhkd.console import escape, print_result
from uhkd.console import print_table as show_parts

_HEAD = ["method", "step ms", "x scratch [95 %]", "x kd [95 %]", "peak MiB", "memory x kd", "MiB over kd"]
_HEAD += ["GFLOP an image", "GFLOP x kd", "extra parameters"]
_ON_TERMINAL = (0, 1, 2, 3, 5, 8)


def cost_rows(measured: Mapping[str, Any]) -> Rows:
    """Head and one row a method of a pair; one that could not be built has no numbers."""
    rows = [[label, *_cells(own)] for label, own in measured["methods"].items()]
    return [_HEAD, *rows, *([label, *["-"] * (len(_HEAD) - 1)] for label in measured["missing"])]


def document(costs: Mapping[str, Any]) -> str:
    """cost.md: a table a pair, what is missing from it, and how the numbers came about."""
    blocks = [f"# {inline(costs['title'])}"]
    for pair, measured in costs["pairs"].items():
        blocks += [f"## {inline(pair)}", setting(measured), markdown(cost_rows(measured)), *_reasons(measured)]
    return "\n\n".join([*blocks, note(costs)]) + "\n"


def print_costs(costs: Mapping[str, Any]) -> None:
    """The tables on standard output."""
    for pair, measured in costs["pairs"].items():
        rows = [[row[i] for i in _ON_TERMINAL] for row in cost_rows(measured)]
        table = Table(title=escape(f"{costs['title']}: {pair}"))
        for head, *cells in zip(*rows, strict=True):
            table.add_column(head, min_width=max(map(len, cells)))  # a head may wrap, a number may not
        for row in rows[1:]:
            table.add_row(*map(escape, row))
        show_parts(table)
        for line in (setting(measured), *_reasons(measured)):
            print_result(line)


def note(costs: Mapping[str, Any]) -> str:
    """What was done, on what, and what may be read from it."""
    machine = costs["environment"]
    return (
        f"Interleaved: {costs['rounds']} rounds after {costs['warmup']} steps of warm-up; in each round every method takes one "
        "step on the same images, in a shuffled order. A step goes from a loaded batch to new weights: teacher, student, "
        "method, backward pass, clipping, optimizer; loading images is not in it. Step ms: median. x: geometric mean of the "
        "ratios within rounds [95 % interval, Student's t over rounds]. Peak MiB: one fresh process a method, two steps; on a "
        "CPU the whole process with Python, libraries and images (freed memory given back at once), on a GPU the tensors "
        "there. GFLOP: matrix products, convolutions and attention, forward and backward; FFTs, other decompositions and "
        "elementwise work are not counted. "
        f"Networks with random weights (run folders with their own). {_hardware(machine)}, {machine['threads']} CPU threads, "
        f"torch {machine['versions']['torch']}. Times of a shared machine are its own: compare ratios, not milliseconds."
    )


def _cells(own: Mapping[str, Any]) -> list[str]:
    kd, peak = own["to_kd"], own["peak_bytes"]
    measured = [f"{peak / 2**20:.0f}", f"{kd['memory']:.2f}", f"{kd['extra_mib']:+.0f}"] if kd["memory"] else ["-"] * 3
    return [
        f"{1000 * own['median_seconds']:.3g}",
        _interval(own["to_scratch"]["time"]),
        _interval(kd["time"]),
        *measured,
        f"{own['gflop_per_image']:.3g}",
        f"{kd['flops']:.2f}",
        f"{own['extra_parameters']:,}",
    ]


def _interval(ratio: Mapping[str, float]) -> str:
    """'1.20 [1.15, 1.26]'; a baseline beside itself is 1 without an interval."""
    if ratio["low"] == ratio["high"]:
        return f"{ratio['mean']:.2f}"
    return f"{ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def setting(measured: Mapping[str, Any]) -> str:
    """Networks, batch and precision of a pair; several of one where variants differ."""
    own = list(measured["methods"].values())

    def each(key: str) -> str:
        return " / ".join(dict.fromkeys(str(m[key]) for m in own if m[key] is not None))

    students = " / ".join(dict.fromkeys(m["recipe"]["student"] for m in own))
    sizes = " / ".join(dict.fromkeys("x".join(map(str, m["image_size"])) for m in own))
    parts = each("accumulate")
    return (
        f"{students}, teacher {each('teacher')}; batch {each('batch_size')}{'' if parts == '1' else f' in {parts} parts'}, "
        f"images {sizes}, {each('precision')} on {each('device')}"
    )


def _reasons(measured: Mapping[str, Any]) -> list[str]:
    lines = [f"- {label} cannot be built: {' '.join(why.split())}" for label, why in measured["missing"].items()]
    for label, own in measured["methods"].items():
        lines += [f"- peak memory of {label}: {own['no_peak']}"] if "no_peak" in own else []
    return ["\n".join(lines)] if lines else []


def _hardware(machine: Mapping[str, Any]) -> str:
    if machine["gpu"]:
        return machine["gpu"]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or machine["machine"])
