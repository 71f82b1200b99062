"""Tables of a comparison, as rows and as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uhkd.commands.comparing.summary import PairedDifference, TableRow, table_rows
from uhkd.console import escape

Rows = list[list[str]]
_Column = tuple[str, Callable[[TableRow], str], tuple[str, ...], Callable[[TableRow], tuple[float | None, ...]]]
"""Header and text of a column of compare.md; names and numbers of the columns of compare.csv."""
_LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "±": r"$\pm$", "−": "$-$"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_MARKDOWN = {"|": r"\|", "<": "&lt;"}


def mean_sd(row: TableRow) -> str:
    """Format as '97.21 ± 0.35': percent, with the sample standard deviation over seeds."""
    return f"{row.mean:.2f}" + ("" if row.sd is None else f" ± {row.sd:.2f}")


def gap_text(gap: PairedDifference | None) -> str:
    """Format as '+1.20 ± 0.80': points, with half the width of the 95 % interval; '-' without a baseline."""
    if gap is None:
        return "-"
    return f"{gap.mean:+.2f}" + ("" if gap.half is None else f" ± {gap.half:.2f}")


def _difference_column(baseline: str) -> _Column:
    def numbers(row: TableRow) -> tuple[float | None, ...]:
        gap = row.gaps[baseline]
        return (None, None) if gap is None else (gap.mean, gap.half)

    keys = (f"to_{baseline}", f"to_{baseline}_half_95")
    return f"to {baseline}", lambda row: gap_text(row.gaps[baseline]), keys, numbers


_COLUMNS: tuple[_Column, ...] = (
    ("accuracy (%)", mean_sd, ("accuracy", "sd"), lambda row: (row.mean, row.sd)),
    _difference_column("scratch"),
    _difference_column("kd"),
    ("training min", lambda row: f"{60 * row.hours:.1f}", ("training_minutes",), lambda row: (60 * row.hours,)),
    ("points per hour", lambda row: f"{row.per_hour:.0f}", ("points_per_hour",), lambda row: (row.per_hour,)),
    (
        "extra parameters",
        lambda row: f"{row.extra_parameters:,}",
        ("extra_parameters",),
        lambda r: (r.extra_parameters,),
    ),
    ("tried", lambda row: str(row.settings_tried), ("settings_tried",), lambda row: (row.settings_tried,)),
)


def pair_rows(summary: Mapping[str, Any], pair: str) -> Rows:
    """Return header and one row per method: accuracy, paired differences, time, parameters, settings tried."""
    head = ["method", *(header for header, *_ in _COLUMNS)]
    rows = (row for row in table_rows(summary) if row.pair == pair)
    return [head, *([row.method, *(text(row) for _, text, *_ in _COLUMNS)] for row in rows)]


def overview(summary: Mapping[str, Any]) -> Rows:
    """Return header and one row per method, one column per pair: mean ± sd."""
    cells = {(row.method, row.pair): mean_sd(row) for row in table_rows(summary)}
    methods = list(dict.fromkeys(method for method, _ in cells))
    pairs = list(summary["pairs"])
    rows = [[m, *(cells.get((m, p), "not run") for p in pairs)] for m in methods]
    return [["method", *pairs], teacher_row(summary), *rows]


def csv_rows(summary: Mapping[str, Any]) -> Rows:
    """Return header and one row per pair and method, one number per cell, which may be empty."""
    head = ["pair", "method", "seeds", *(key for _, _, keys, _ in _COLUMNS for key in keys)]
    rows = []
    for row in table_rows(summary):
        numbers = (x for *_, numbers_of in _COLUMNS for x in numbers_of(row))
        cells = ("" if x is None else f"{x:.6g}" for x in numbers)
        rows.append([_no_formula(row.pair), row.method, str(len(row.accuracy)), *cells])
    return [head, *rows]


def teacher_row(summary: Mapping[str, Any]) -> list[str]:
    """Return the accuracies of the teachers, one column per pair."""
    accuracies = [facts["teacher"]["accuracy"] for facts in summary["pairs"].values()]
    return ["(teacher)", *("not measured" if x is None else f"{100 * x:.2f}" for x in accuracies)]


def run_rows(summary: Mapping[str, Any]) -> Rows:
    """Return header and one row per run with all digits."""
    keys = ("pair", "method", "seed", "accuracy", "seconds", "extra_parameters", "lr", "settings", "weights", "commit")
    rows = [[_no_formula(str(run["pair"])), *(str(run[key]) for key in keys[1:])] for run in summary["runs"]]
    return [list(keys), *rows]


def _no_formula(name: str) -> str:
    """Mark a name as text for spreadsheets; pairs have names of files, which may look like formulas."""
    return f"'{escape(name)}" if name.startswith(("=", "+", "-", "@")) else escape(name)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the first row is the header."""
    with_rule = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(map(inline, row))} |" for row in with_rule)


def inline(text: str) -> str:
    """Escape text for a Markdown line or cell: HTML, links, images and cell separators."""
    return "".join(_MARKDOWN.get(letter, letter) for letter in escape(text)).replace("](", r"]\(")


def latex(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a table in LaTeX (booktabs); the first row is the header."""

    def cell(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in escape(text))

    first, *body = (" & ".join(map(cell, row)) + r" \\" for row in rows)
    head = [r"\begin{table}", r"\centering", rf"\caption{{{cell(caption)}}}"]
    table = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", first, r"\midrule", *body]
    return "\n".join([*head, *table, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as comma-separated values; the first row is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
