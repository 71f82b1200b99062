"""The report's figures as files for papers and slides: PNG and SVG of each, all panels in one."""

import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from uhkd.reporting import figures, inside
from uhkd.reporting.drawing import LIGHT, Bars, Curves, Drawing, Heat, heat_colour
from uhkd.reporting.groups import Report
from uhkd.runs import write_atomically
from uhkd.text import shown

_ACROSS = 3  # panels in a row
_STYLES: tuple[Any, ...] = ("-", (0, (6, 3)), (0, (2, 3)), (0, (8, 3, 2, 3)))
_LONGEST = 40


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Write every figure of a report into a folder, named by network, method and kind.

    Raises:
        OSError: when a file cannot be written.
    """
    written: list[Path] = []
    used: set[str] = set()
    for wanted, drawing in _named(report):
        name = wanted if wanted not in used else f"{wanted}-{drawing.key}"
        used.add(name)
        figure = _draw(drawing)
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            write_atomically(path, _bytes(figure, kind, name))
            written.append(path)
    return written


def _named(report: Report) -> Iterator[tuple[str, Drawing]]:
    for family in report.families:
        for drawing in figures.of_family(family):
            yield f"{_slug(family.student)}-{drawing.key.partition('-')[2]}", drawing
        for group in family.groups:
            for drawing in inside.of_group(group):
                yield f"{_slug(family.student)}-{_slug(group.label)}-{drawing.key.partition('-')[2]}", drawing


def _slug(words: str) -> str:
    """Letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", words).strip("-")[:_LONGEST] or "unnamed"


def _bytes(figure: Figure, kind: str, name: str) -> bytes:
    content = io.BytesIO()
    # text stays text; the same names of parts for the same figure
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(content, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _draw(drawing: Drawing) -> Figure:
    columns = min(len(drawing.panels), _ACROSS)
    rows = math.ceil(len(drawing.panels) / columns)
    tallest = max(len(p.rows) * 0.27 if isinstance(p, Bars) else 0.0 for p in drawing.panels)
    figure = Figure(figsize=(max(4.6, 3.5 * columns), rows * max(2.9, tallest + 1.0) + 0.6), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(places, drawing.panels, strict=False):
        axes.set_title(_name(panel.title), fontsize="medium")
        if isinstance(panel, Curves):
            _curves(axes, panel)
        elif isinstance(panel, Bars):
            _bars(axes, panel)
        else:
            _heat(axes, panel)
    for axes in places[len(drawing.panels) :]:
        axes.remove()
    figure.suptitle(_name(drawing.title))
    if drawing.legend:
        handles = [Line2D([], [], color=LIGHT[hue], linestyle=_STYLES[dash % 4]) for _, hue, dash, _ in drawing.legend]
        figure.legend(
            handles,
            [_name(label) for label, *_ in drawing.legend],
            loc="outside lower center",
            ncols=4,
            fontsize="small",
        )
    return figure


def _curves(axes: Axes, panel: Curves) -> None:
    for line in panel.lines:
        if line.frame is not None:  # a slider's; the last of them is drawn beside
            continue
        style = {"color": LIGHT[line.hue], "linestyle": _STYLES[line.dash % 4]}
        axes.plot(line.x, line.y, marker="o" if len(line.x) == 1 else None, markersize=4, **style)
        if line.band:
            axes.fill_between(line.x, *line.band, color=LIGHT[line.hue], alpha=0.16, linewidth=0)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, yscale="log" if panel.log else "linear")
    axes.grid(alpha=0.3)


def _bars(axes: Axes, panel: Bars) -> None:
    for r, row in enumerate(panel.rows):
        for k, (value, hue, words) in enumerate(row.values):
            if not math.isfinite(value):
                continue
            y = r + (k - (len(row.values) - 1) / 2) * 0.8 / len(row.values)  # the values of a row side by side
            if panel.as_dots:
                axes.plot(row.dots, [y] * len(row.dots), "o", color=LIGHT[hue], alpha=0.5, markersize=4)
                axes.plot([value], [y], "|", color=LIGHT[hue], markersize=12, markeredgewidth=2.5)
            else:
                axes.barh(y, value, 0.72 / len(row.values), color=LIGHT[hue])
            end = max((value, *row.dots)) if panel.as_dots else max(value, 0.0)
            axes.annotate(
                _name(words), (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize="small"
            )
    axes.set_yticks(range(len(panel.rows)), [_name(row.label) for row in panel.rows])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(panel.x_label)
    axes.grid(alpha=0.3, axis="x")


def _heat(axes: Axes, panel: Heat) -> None:
    for r, row in enumerate(panel.values):
        for c, value in enumerate(row):
            known = math.isfinite(value)
            fill, ink = heat_colour((value - panel.low) / (panel.high - panel.low) if known else 0.0)
            axes.fill_between([c - 0.5, c + 0.5], r - 0.5, r + 0.5, color=fill, linewidth=0)
            said = f"{value:.{panel.digits}f}" if known else "-"
            axes.text(c, r, said, ha="center", va="center", color=ink, fontsize="small")
    axes.set_xticks(
        range(len(panel.columns)), [_name(n) for n in panel.columns], rotation=45 if panel.digits == 0 else 0
    )
    axes.set_yticks(range(len(panel.rows)), [_name(n) for n in panel.rows])
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set(xlim=(-0.5, len(panel.columns) - 0.5), ylim=(len(panel.rows) - 0.5, -0.5))


def _name(words: str) -> str:
    """Words from elsewhere as a label: one short line, no formula between dollars."""
    line = shown(words)
    return (line if len(line) <= 60 else f"{line[:59]}…").replace("$", r"\$")
