"""Draw figures with matplotlib: panels as inline SVG for the page, whole figures as files.

matplotlib is imported only when something is drawn: its import takes longer than most commands.
"""

import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from uhkd.console import escape
from uhkd.reporting.figure_data import DASHES, LIGHT, Bars, Curves, Heat, Legend, Panel, Series

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Marks = Iterator[tuple[Series, Sequence[Artist]]]

HEAT = ("#ecf2fa", "#08306b")  # colour of the lowest and of the highest value
_WIDTH, _HEIGHT, _ROW = 340, 230, 21  # of a panel, and height of a row, in points (CSS pixels on the page)
_MAX_CELLS = 14  # columns of a heat map with readable numbers
_MAX_LABEL, _MAX_TICK = 60, 28  # characters of a label, and of a tick label in a file
_VARIABLES = {
    colour: f"var(--{name})" for name, colour in LIGHT.items() if name != "paper"
}  # text on dark cells stays white
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # names in run folders may contain dollar signs
    "svg.fonttype": "none",  # text as <text>
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titley": 1.0,  # automatic placement takes a third of the drawing time
    "axes.titleweight": "bold",
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "grid.color": LIGHT["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.bottom": False,
    "ytick.left": False,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "lines.scale_dashes": False,
}


def inline(panel: Panel, alt: str, key: str, hidden: Container[str] = ()) -> Markup:
    """Return a panel as an <svg> element for a page that defines the colours as CSS variables.

    alt: text for screen readers. key: unique in the page, which makes the ids in the element unique. hidden: keys of groups that
    are hidden at first. The elements of a series have data-group, data-frame and a title.
    """
    series: list[Series] = []
    with _drawing({"font.family": "DejaVu Sans", "svg.hashsalt": key}):
        left, right, top, bottom, height = _margins(panel)
        figure = _figure(_WIDTH, height)
        figure.patch.set_visible(False)
        axes = figure.add_axes(
            (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (top + bottom) / height)
        )
        for item, artists in _plot(axes, panel, short=True):
            for artist in artists:
                artist.set_gid(f"series-{len(series)}")
            series.append(item)
        text = _save(figure, "svg").decode()

    def tag(match: re.Match[str]) -> str:
        """Shorten a tag and replace its colours by variables. Text between tags is escaped, so a match is always a tag."""
        text = re.sub(r"#[0-9a-f]{6}(?![0-9a-f])", lambda colour: _VARIABLES.get(colour[0], colour[0]), match[0])
        text = re.sub(r"(\.\d\d)\d+|\s+(?=[\s\"])| transform=\"rotate\(-0 [^\"]*\"", r"\1", text.replace("\n", " "))
        if not (name := re.match(r'<g id="(series-(\d+))?', text)):
            return text
        if text.endswith("/>"):  # empty group
            return ""
        if name[1] is None:
            return "<g>"
        item = series[int(name[2])]
        data = "" if item.frame is None else f' data-frame="{item.frame}"'
        data += f' data-group="{item.group}"{" hidden" * (item.group in hidden)}' if item.group else ""
        return f"<g{data}><title>{html.escape(escape(item.label))}</title>"

    body = text[text.index("</defs>") + 7 :]  # the first <defs> has a style that would apply to the whole page
    frame = '<svg class="panel" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">'
    body = re.sub(r"<[^>]*>", tag, re.sub(r">\s+<", "><", body)).strip()
    return Markup(frame).format(escape(alt), _WIDTH, height, _WIDTH, height) + Markup(body)


def images(kinds: Sequence[str], panels: Sequence[Panel], title: str = "", legend: Legend = ()) -> list[bytes]:
    """Return all panels as one file of each kind ("png", "svg", "pdf"), without the lines of a slider."""
    from matplotlib.lines import Line2D

    columns = len(panels) if len(panels) <= 4 else 3
    rows = math.ceil(len(panels) / columns)
    names = [_name(label) for label, *_ in legend]
    legend_columns = max(1, _WIDTH * columns // (6 * max(map(len, names), default=0) + 50))
    tallest = max(130, *(_margins(panel)[-1] for panel in panels))
    title = _lines(title, _WIDTH * columns)
    above = 30 + 16 * title.count("\n") if title else 0
    height = rows * tallest + above + 18 * math.ceil(len(names) / legend_columns)
    with _drawing({"svg.hashsalt": title}):
        figure = _figure(_WIDTH * columns, height, layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(all_axes, panels, strict=False):
            for series, artists in _plot(axes, panel, short=False):
                for artist in artists if series.frame is not None else ():
                    artist.remove()
        for axes in all_axes[len(panels) :]:
            axes.remove()
        if title:
            figure.suptitle(title, fontsize=12)
        if legend:
            handles = [Line2D([], [], color=LIGHT[hue], linestyle=_dashes(dash)) for _, hue, dash, _ in legend]
            figure.legend(handles, names, loc="outside lower center", ncols=legend_columns, frameon=False)
        return [_save(figure, kind) for kind in kinds]


@contextmanager
def _drawing(style: Any) -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE | style), warnings.catch_warnings():
        # characters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _figure(width: float, height: float, **text: Any) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((width / 72, height / 72), **text)


def _save(figure: "Figure", kind: str) -> bytes:
    content = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else None
    figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()


def _margins(panel: Panel) -> tuple[float, float, float, float, float]:
    """Return left, right, top and bottom margin of a panel on the page, and its height, in points."""
    top = 24 if panel.title else 8
    if isinstance(panel, Curves):
        return 62 if panel.y_label else 48, 10, top, 38, _HEIGHT
    if isinstance(panel, Bars):
        return 128, 4, top, 36, top + 36 + sum(max(_ROW, 13 * len(row.values) + 8) for row in panel.rows)
    left = 7 * min(max(map(len, panel.rows)), 16) + 10 + 16 * bool(panel.y_label)
    bottom = 22 + 16 * bool(panel.x_label) + (40 if _slanted(panel) else 0)
    tall = 34 if len(panel.rows) <= 6 else 26 if len(panel.rows) <= _MAX_CELLS else 16
    return left, 8, top, bottom, top + bottom + tall * len(panel.rows)


def _plot(axes: "Axes", panel: Panel, *, short: bool) -> "Marks":
    """Draw a panel and yield each series with its artists. short: limit labels to the margins of the page."""
    axes.patch.set_visible(False)
    if short:  # from the left edge of the figure: centred over the axes, a long title would be cut off at the right
        left, right, *_ = _margins(panel)
        axes.set_title(_name(panel.title, 40), loc="left", x=(4 - left) / (_WIDTH - left - right))
    else:
        axes.set_title(_lines(panel.title, _WIDTH))
    axes.set_xlabel(panel.x_label)
    if isinstance(panel, Curves):
        yield from _curves(axes, panel)
    elif isinstance(panel, Bars):
        yield from _bars(axes, panel, 20 if short else _MAX_TICK)
    else:
        _heat(axes, panel, short)


def _curves(axes: "Axes", panel: Curves) -> "Marks":
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    integers = True  # epochs and steps
    for line in panel.lines:
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        finite = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not panel.log))
        integers &= bool((x[finite] % 1 == 0).all())
        style: dict[str, Any] = {"color": LIGHT[line.hue], "linestyle": _dashes(line.dash)}
        style |= {"linewidth": 1.2, "alpha": 0.75} if line.faint else {"linewidth": 3} if line.frame is not None else {}
        artists: list[Artist] = [*axes.plot(x[finite], y[finite], marker="o" if finite.sum() == 1 else None, **style)]
        if line.band:
            low, high = (np.asarray(edge, float)[finite] for edge in line.band)
            artists.append(axes.fill_between(x[finite], low, high, color=LIGHT[line.hue], alpha=0.16, linewidth=0))
        yield line, artists
    axes.set_ylabel(panel.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=integers, min_n_ticks=1 if integers else 2))
    axes.margins(x=0.02)
    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e-0", "e-")))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _bars(axes: "Axes", panel: Bars, max_label: int) -> "Marks":
    from matplotlib.ticker import MaxNLocator

    labels = ["\n→ ".join(_name(part, max_label) for part in row.label.split(" → ")) for row in panel.rows]
    axes.set_yticks(range(len(panel.rows)), labels)
    names = axes.get_yticklabels()
    ends = [0.0] * (not panel.as_dots)
    for r, row in enumerate(panel.rows):
        artists: list[Artist] = [names[r]]
        dots = [dot for dot in row.dots if math.isfinite(dot)]
        for k, (value, hue, text) in enumerate(row.values):
            if not math.isfinite(value):
                continue
            y, colour = r + (k - (len(row.values) - 1) / 2) * 0.8 / len(row.values), LIGHT[hue]
            if panel.as_dots:
                artists += axes.plot(dots, [y] * len(dots), "o", color=colour, alpha=0.6, markeredgewidth=0)
                artists += axes.plot([value], [y], "|", color=colour, markersize=14, markeredgewidth=3)
                ends += [value, *dots]
            else:
                artists += axes.barh(y, value, 0.64 / len(row.values), color=colour)
                ends.append(value)
            end = (max(value, *dots, value) if panel.as_dots else max(value, 0.0), y)
            style: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            artists.append(axes.annotate(_name(text), end, **style))
        yield row, artists
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    width = high - low or abs(high) or 1.0
    axes.set_xlim(low - (0.06 * width if panel.as_dots or low < 0 else 0), high + 0.3 * width)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="y")


def _heat(axes: "Axes", panel: Heat, short: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    values = np.asarray(panel.values, float)
    share = np.clip(np.nan_to_num((values - panel.low) / (panel.high - panel.low)), 0, 1)
    colours = LinearSegmentedColormap.from_list("heat", HEAT)
    axes.imshow(share, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none")
    if len(panel.columns) <= _MAX_CELLS:
        for (r, c), value in np.ndenumerate(values):
            text = f"{value:.{panel.digits}f}" if math.isfinite(value) else "-"
            axes.text(c, r, text, ha="center", va="center", color=heat_ink(float(share[r, c])))
    rotation: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if _slanted(panel) else {}
    if len(panel.columns) > _MAX_CELLS:
        rotation |= {"rotation": 90, "fontsize": 7}
    columns, rows = (11, 16) if short else (16, _MAX_TICK)
    axes.set_xticks(range(len(panel.columns)), [_name(name, columns) for name in panel.columns], **rotation)
    axes.set_yticks(range(len(panel.rows)), [_name(name, rows) for name in panel.rows])
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=False)


def heat_ink(share: float) -> str:
    """Return the text colour for a cell at `share` (0 to 1) of the `HEAT` range, with a contrast of at least 4.5 to 1."""
    return "#000000" if share < 0.64 else "#ffffff"


def _slanted(panel: Heat) -> bool:
    return max(map(len, panel.columns)) * 7 > (_WIDTH - 80) / len(panel.columns)


def _dashes(dash: int) -> Any:
    return (0, [float(part) for part in DASHES[dash % 4].split()]) if dash % 4 else "-"


def _name(text: str, max_length: int = _MAX_LABEL) -> str:
    """Return a label of one short line. matplotlib hides labels that start with "_" from legends: they get a space.

    The middle of a long name is left out: names of classes often begin with the same words.
    """
    line = escape(str(text))
    if len(line) > max_length:
        end = (max_length - 1) // 2
        line = f"{line[: max_length - 1 - end]}…{line[-end:]}"
    return f"{' ' * line.startswith('_')}{line}"


def _lines(title: str, width: float) -> str:
    """Return a title in lines that fit into a width in points."""
    return textwrap.fill(_name(title, 3 * _MAX_LABEL), int(width / 7.5))
