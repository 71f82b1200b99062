"""What a finished comparison leaves behind: compare.json, .md, .tex, .csv, runs.csv, compare.png, and tables on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from uhkd.commands.comparing.summary import lines, verdicts
from uhkd.commands.comparing.tables import (
    Rows,
    csv_text,
    inline,
    latex,
    line_rows,
    markdown,
    overview,
    pair_rows,
    run_rows,
)
from uhkd.console import escape, log_info
from uhkd.console import print_table as show_parts
from uhkd.reporting.plots import draw_comparison
from uhkd.runs import RunFolder, write_atomically

_ON_TERMINAL = (0, 1, 2, 3, 4)  # what fits 80 columns; compare.md holds the rest
PARTS = {"val": "held-out part of the training images", "test": "test part"}


def write(out: Path, summary: dict[str, Any]) -> None:
    """Every file of a comparison's result, each written whole."""
    RunFolder(out).write_json("compare.json", summary)
    tables = {pair: pair_rows(summary, pair) for pair in summary["pairs"]}
    write_atomically(out / "compare.md", document(summary, tables))
    write_atomically(
        out / "compare.tex", "\n".join(latex(rows, f"{summary['title']}: {p}") for p, rows in tables.items())
    )
    write_atomically(out / "compare.csv", csv_text(line_rows(summary)))
    write_atomically(out / "runs.csv", csv_text(run_rows(summary)))
    if summary["runs"]:
        draw_comparison(
            {
                pair: {line.method: list(line.accuracy.values()) for line in lines(summary) if line.pair == pair}
                for pair in summary["pairs"]
            },
            out / "compare.png",
            f"{summary['title']} ({PARTS[summary['part']]})",
        )


def document(summary: Mapping[str, Any], tables: Mapping[str, Rows]) -> str:
    """compare.md: how the numbers came about, an overview, a table a pair, what is missing, what was tried."""
    tried = summary["settings_tried"]
    tuned = (
        f"Each method (variants with words of their own excepted) first tried {tried} settings (learning rate, loss weight, "
        "main setting) on the held-out part, with a seed of its own; the best went into the table."
        if summary["tuning"]
        else "No setting was tuned for this table: every method ran with its defaults."
    )
    seen = " These are the images of the table." if summary["tuning"] and summary["part"] == "val" else ""
    notes = (
        f"Accuracy on the {PARTS[summary['part']]} after the last epoch, mean ± sample sd over seeds. Differences are "
        f"paired by seed, ± half of the 95 % interval (Student's t, each comparison by itself). {tuned}{seen}"
    )
    by_cache = sum(run.get("teacher_cache") is not None for run in summary["runs"])
    if by_cache:
        notes += (
            f" {by_cache} of {len(summary['runs'])} runs learned from stored signals of their teacher: their training time "
            "leaves the teacher out and does not compare with the others' (compare --cost measures steps with it)."
        )
    blocks = [f"# {inline(summary['title'])}", notes, markdown(overview(summary)), "![accuracies](compare.png)"]
    commits = sorted({str(run["commit"]) for run in summary["runs"]})
    blocks.append(
        "\n".join(f"- {line}" for line in [*_machines(summary), f"commit {', '.join(commits)}", *_warned(summary)])
    )
    for pair, rows in tables.items():
        own = summary["pairs"][pair]
        networks = f"{own['student']}, teacher {own['teacher']['name']}"
        blocks += [f"## {inline(pair)}", inline(networks), markdown(rows)]
    if summary["missing"]:
        blocks.append(
            "Missing cells:\n\n" + "\n".join(f"- {inline(n)}: {inline(why)}" for n, why in summary["missing"].items())
        )
    if summary["tuning"]:
        rows = [["pair", "method", "changes", "held-out accuracy (%)", "taken"]]
        rows += [
            [t["pair"], t["method"], str(t["changes"] or "none"), _percent(t["accuracy"]), "yes" if t["taken"] else ""]
            for t in summary["tuning"]
        ]
        blocks += ["## Settings tried", markdown(rows)]
    return "\n\n".join(blocks) + "\n"


def _machines(summary: Mapping[str, Any]) -> list[str]:
    """Where the runs were made, a line a kind of machine."""
    return [
        f"{facts['gpu'] or facts['machine']}, {facts['cpu_cores']} CPU cores, {facts['threads']} CPU threads a run, "
        f"torch {facts['versions']['torch']}, timm {facts['versions']['timm']}, uhkd {facts['versions']['uhkd']}"
        for facts in summary["environments"]
    ]


def _warned(summary: Mapping[str, Any]) -> list[str]:
    return [f"**warning: {line}**" for line in summary["warnings"]]


def _percent(accuracy: float | None) -> str:
    return "failed" if accuracy is None else f"{100 * accuracy:.2f}"


def _table(rows: Rows, title: str) -> Table:
    head, *body = [[*map(escape, row)] for row in rows]
    table = Table(*head, title=escape(title))
    for row in body:
        table.add_row(*row)
    return table


def print_report(summary: Mapping[str, Any]) -> None:
    """The tables on standard output, what may be said of UHKD on standard error."""
    pairs = [
        _table([[row[i] for i in _ON_TERMINAL] for row in pair_rows(summary, pair)], pair) for pair in summary["pairs"]
    ]
    show_parts(_table(overview(summary), summary["title"]), *pairs)
    for line in verdicts(summary):
        log_info(line)
