"""Tables of a comparison, as rows and as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from uhkd.commands.comparing.summary import PairedDifference, TableRow, lines
from uhkd.console import escape

Rows = list[list[str]]
_LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "±": r"$\pm$", "−": "$-$"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_MARKDOWN = {"|": r"\|", "<": "&lt;"}


def mean_sd(line: TableRow) -> str:
    """Format as '97.21 ± 0.35': percent, with the sample standard deviation over seeds."""
    return f"{line.mean:.2f}" + ("" if line.sd is None else f" ± {line.sd:.2f}")


def gap_text(gap: PairedDifference | None) -> str:
    """Format as '+1.20 ± 0.80': points, with half the width of the 95 % interval; '-' without a baseline."""
    if gap is None:
        return "-"
    return f"{gap.mean:+.2f}" + ("" if gap.half is None else f" ± {gap.half:.2f}")


def pair_rows(summary: Mapping[str, Any], pair: str) -> Rows:
    """Return header and one row per method: accuracy, paired differences, time, parameters, settings tried."""
    head = [
        "method",
        "accuracy (%)",
        "to scratch",
        "to kd",
        "training min",
        "points per hour",
        "extra parameters",
        "tried",
    ]
    rows = [
        [
            line.method,
            mean_sd(line),
            gap_text(line.gaps["scratch"]),
            gap_text(line.gaps["kd"]),
            f"{60 * line.hours:.1f}",
            f"{line.per_hour:.0f}",
            f"{line.extra_parameters:,}",
            str(line.settings_tried),
        ]
        for line in lines(summary)
        if line.pair == pair
    ]
    return [head, *rows]


def overview(summary: Mapping[str, Any]) -> Rows:
    """Return header and one row per method, one column per pair: mean ± sd."""
    cells = {(line.method, line.pair): mean_sd(line) for line in lines(summary)}
    methods = list(dict.fromkeys(method for method, _ in cells))
    pairs = list(summary["pairs"])
    rows = [[m, *(cells.get((m, p), "not run") for p in pairs)] for m in methods]
    return [["method", *pairs], teacher_row(summary), *rows]


def line_rows(summary: Mapping[str, Any]) -> Rows:
    """Return header and one row per pair and method, one number per cell, which may be empty."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.6g}"

    head = ["pair", "method", "seeds", "accuracy", "sd", "to_scratch", "to_scratch_half_95", "to_kd", "to_kd_half_95"]
    rows = []
    for line in lines(summary):
        gaps = [(gap.mean, gap.half) if gap else (None, None) for gap in (line.gaps["scratch"], line.gaps["kd"])]
        numbers = [line.mean, line.sd, *gaps[0], *gaps[1], 60 * line.hours, line.per_hour]
        numbers += [line.extra_parameters, line.settings_tried]
        rows.append([_no_formula(line.pair), line.method, str(len(line.accuracy)), *map(number, numbers)])
    return [[*head, "training_minutes", "points_per_hour", "extra_parameters", "settings_tried"], *rows]


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
