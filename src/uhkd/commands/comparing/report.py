"""Results of a comparison: compare.json, .md, .tex, .csv, runs.csv, compare.png, and tables on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from uhkd.commands.comparing.summary import table_rows, verdicts
from uhkd.commands.comparing.tables import (
    Rows,
    csv_rows,
    csv_text,
    inline,
    latex,
    markdown,
    overview,
    pair_rows,
    run_rows,
)
from uhkd.console import escape, log_info, print_table
from uhkd.reporting.plots import draw_comparison
from uhkd.runs import RunFolder, write_atomically

_ON_TERMINAL = (0, 1, 2, 3, 4)  # columns for a width of 80; compare.md has all
PARTS = {"val": "validation split", "test": "test split"}


def write(out: Path, summary: dict[str, Any]) -> None:
    """Write all result files of a comparison, each atomically."""
    RunFolder(out).write_json("compare.json", summary)
    tables = {pair: pair_rows(summary, pair) for pair in summary["pairs"]}
    write_atomically(out / "compare.md", document(summary, tables))
    parts = [latex(rows, f"{summary['title']}: {pair}") for pair, rows in tables.items()]
    write_atomically(out / "compare.tex", "\n".join(parts))
    write_atomically(out / "compare.csv", csv_text(csv_rows(summary)))
    write_atomically(out / "runs.csv", csv_text(run_rows(summary)))
    if summary["runs"]:
        accuracies: dict[str, dict[str, list[float]]] = {pair: {} for pair in summary["pairs"]}
        for row in table_rows(summary):
            accuracies[row.pair][row.method] = list(row.accuracy.values())
        draw_comparison(accuracies, out / "compare.png", f"{summary['title']} ({PARTS[summary['part']]})")


def document(summary: Mapping[str, Any], tables: Mapping[str, Rows]) -> str:
    """Return compare.md: how the numbers were measured, an overview, one table per pair, missing cells, settings tried."""
    tried = summary["settings_tried"]
    tuned = (
        f"For each method (except variants) {tried} settings (learning rate, loss weight, main setting) were tried on the "
        "held-out split with a seed that is not in the table; the best is in the table."
        if summary["tuning"]
        else "No setting was tuned for this table: every method ran with its defaults."
    )
    same = " These are the images of the table." if summary["tuning"] and summary["part"] == "val" else ""
    notes = (
        f"Accuracy on the {PARTS[summary['part']]} after the last epoch, mean ± sample sd over seeds. Differences are "
        f"paired by seed, ± half of the 95 % interval (Student's t, without correction for several comparisons). {tuned}{same}"
    )
    by_cache = sum(run.get("teacher_cache") is not None for run in summary["runs"])
    if by_cache:
        notes += (
            f" {by_cache} of {len(summary['runs'])} runs used stored outputs of their teacher: their training time excludes the "
            "teacher and cannot be compared with that of the others (compare --cost measures steps that include it)."
        )
    blocks = [f"# {inline(summary['title'])}", notes, markdown(overview(summary)), "![accuracies](compare.png)"]
    commits = sorted({str(run["commit"]) for run in summary["runs"]})
    warnings = [f"**warning: {line}**" for line in summary["warnings"]]
    blocks.append("\n".join(f"- {line}" for line in [*_machines(summary), f"commit {', '.join(commits)}", *warnings]))
    for pair, rows in tables.items():
        facts = summary["pairs"][pair]
        networks = f"{facts['student']}, teacher {facts['teacher']['name']}"
        blocks += [f"## {inline(pair)}", inline(networks), markdown(rows)]
    if summary["missing"]:
        missing = [f"- {inline(name)}: {inline(why)}" for name, why in summary["missing"].items()]
        blocks.append("\n".join(["Missing cells:", "", *missing]))
    if summary["tuning"]:
        rows = [["pair", "method", "changes", "held-out accuracy (%)", "taken"]]
        rows += [
            [t["pair"], t["method"], str(t["changes"] or "none"), _percent(t["accuracy"]), "yes" if t["taken"] else ""]
            for t in summary["tuning"]
        ]
        blocks += ["## Settings tried", markdown(rows)]
    return "\n\n".join(blocks) + "\n"


def _machines(summary: Mapping[str, Any]) -> list[str]:
    """Return one line per kind of machine of the runs."""
    return [
        f"{facts['gpu'] or facts['machine']}, {facts['cpu_cores']} CPU cores, {facts['threads']} CPU threads per run, "
        f"torch {facts['versions']['torch']}, timm {facts['versions']['timm']}, uhkd {facts['versions']['uhkd']}"
        for facts in summary["environments"]
    ]


def _percent(accuracy: float | None) -> str:
    return "failed" if accuracy is None else f"{100 * accuracy:.2f}"


def _table(rows: Rows, title: str) -> Table:
    head, *body = [[*map(escape, row)] for row in rows]
    table = Table(*head, title=escape(title))
    for row in body:
        table.add_row(*row)
    return table


def print_report(summary: Mapping[str, Any]) -> None:
    """Print the tables to standard output, and the differences of UHKD to the other methods to standard error."""
    pairs = [
        _table([[row[i] for i in _ON_TERMINAL] for row in pair_rows(summary, pair)], pair) for pair in summary["pairs"]
    ]
    print_table(_table(overview(summary), summary["title"]), *pairs)
    for line in verdicts(summary):
        log_info(line)
