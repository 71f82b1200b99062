"""Panels as inline SVG: text as text, colours by the page's variables, every word from elsewhere escaped."""

import math
from collections.abc import Callable, Container, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

from uhkd.reporting.drawing import DASHES, Bar, Bars, Curves, Heat, Line, Panel, heat_colour
from uhkd.text import shown

_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 40
_LABEL, _ROW = 118, 21
_LONGEST = 20  # letters of a row's label


def draw(panel: Panel, alt: str, hidden: Container[str] = ()) -> Markup:
    """One panel; `alt` is read out in its place. hidden: keys of groups whose lines are not seen until they are asked for."""
    if isinstance(panel, Curves):
        body, height = _curves(panel, hidden)
    elif isinstance(panel, Bars):
        body, height = _bars(panel)
    else:
        body, height = _heat(panel)
    frame = '<svg class="panel" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}{}</svg>'
    title = _text(_WIDTH / 2, 15, panel.title, "middle", "title")
    return Markup(frame).format(_plain(alt), _WIDTH, height, _WIDTH, height, title, Markup("").join(body))


def _curves(panel: Curves, hidden: Container[str]) -> tuple[list[Markup], int]:
    def seen(values: Sequence[float]) -> list[float]:
        return [v for v in values if math.isfinite(v) and (v > 0 or not panel.log)]

    xs = [x for line in panel.lines for x in line.x if math.isfinite(x)]
    ys = [
        y for line in panel.lines for y in (*seen(line.y), *(seen((*line.band[0], *line.band[1])) if line.band else ()))
    ]
    x_low, x_high = _room(xs, 0.0)
    y_low, y_high = _room([math.log10(y) for y in ys] if panel.log else ys, 0.05)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def px(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT)

    def py(y: float) -> float:
        return bottom - ((math.log10(y) if panel.log else y) - y_low) / (y_high - y_low) * (bottom - _TOP)

    parts: list[Markup] = []
    if panel.log:
        ticks = [
            t for t in LogLocator(numticks=6).tick_values(10**y_low, 10**y_high) if y_low <= math.log10(t) <= y_high
        ]
    else:
        ticks = [t for t, _ in _ticks(5, y_low, y_high)]
    for tick, said in zip(ticks, _numbers(ticks), strict=True):
        parts.append(_rule(_LEFT, py(tick), right, py(tick)))
        parts.append(_text(_LEFT - 5, py(tick) + 4, said, "end"))
    for tick, said in _ticks(6, x_low, x_high, whole=all(x == round(x) for x in xs)):
        parts.append(_text(px(tick), bottom + 14, said, "middle"))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, panel.x_label, "middle", "axis"))
    parts.append(
        _text(4, _TOP - 8, panel.y_label, "start", "axis") if not panel.title else _side(panel.y_label, bottom)
    )
    for line in panel.lines:
        points = [
            (px(x), py(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not panel.log)
        ]
        inside = [_stroke(points, line)] if points else []
        if line.band and points:
            low, high = line.band
            edge = [
                (px(x), py(y))
                for x, y in (*zip(line.x, low, strict=True), *reversed([*zip(line.x, high, strict=True)]))
            ]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in edge) + "Z"
            inside.insert(0, Markup('<path class="band {}" d="{}"/>').format(line.hue, path))
        parts.append(_series(inside, line.label, line.group, line.frame, (line.group or "") in hidden))
    return parts, _HEIGHT


def _stroke(points: Sequence[tuple[float, float]], line: Line) -> Markup:
    kind = f"line {line.hue}{' faint' if line.faint else ''}"
    dash = Markup(' stroke-dasharray="{}"').format(DASHES[line.dash % 4]) if line.dash % 4 else ""
    if len(points) == 1:  # a single evaluation is a point
        return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(line.hue, *points[0])
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path class="{}" d="{}"{}/>').format(kind, path, dash)


def _bars(panel: Bars) -> tuple[list[Markup], int]:
    values = [v for row in panel.rows for v in (*(value for value, _, _ in row.values), *row.dots) if math.isfinite(v)]
    low, high = _room(values if panel.as_dots else [0.0, *values], 0.06 if panel.as_dots else 0.0)
    rooms = [max(1, len(row.values)) for row in panel.rows]
    above = _TOP if panel.title else 6
    bottom = above + sum(_row_height(r) for r in rooms) + 4
    left, right = _LABEL, _WIDTH - 48

    def px(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    parts: list[Markup] = []
    for tick, said in _ticks(4, low, high):
        parts.append(_rule(px(tick), above, px(tick), bottom))
        parts.append(_text(px(tick), bottom + 13, said, "middle"))
    parts.append(_text((left + right) / 2, bottom + 29, panel.x_label, "middle", "axis"))
    top = float(above)
    for row, room in zip(panel.rows, rooms, strict=True):
        parts.append(_series(_row(row, panel.as_dots, top, px), row.label, row.group, None))
        top += _row_height(room)
    return parts, int(bottom + 36)


def _row_height(values: int) -> int:
    return _ROW if values == 1 else 13 * values + 8


def _row(row: Bar, as_dots: bool, top: float, px: Callable[[float], float]) -> list[Markup]:
    height = _row_height(max(1, len(row.values)))
    middle = top + height / 2
    label = row.label if len(row.label) <= _LONGEST else f"{row.label[: _LONGEST - 1]}…"
    parts = [_text(_LABEL - 6, middle + 4, label, "end")]
    dot = Markup('<circle class="dot {} faint" cx="{:.1f}" cy="{:.1f}" r="3"/>')
    bar = Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>')
    for place, (value, hue, words) in enumerate(row.values):
        y = middle if len(row.values) == 1 else top + 4 + 13 * place + 6.5
        if not math.isfinite(value):
            continue
        if as_dots:
            parts += [dot.format(hue, px(d), y) for d in row.dots if math.isfinite(d)]
            mark = Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="3" height="15"/>')
            parts.append(mark.format(hue, px(value) - 1.5, y - 7.5))
            end = max(px(value), *(px(d) for d in row.dots), 0)
        else:
            start, stop = sorted((px(0.0), px(value)))
            size = 13 if len(row.values) == 1 else 10
            parts.append(bar.format(hue, start, y - size / 2, max(stop - start, 0.8), size))
            end = stop
        parts.append(_text(end + 5, y + 4, words, "start", "value"))
    return parts


def _heat(panel: Heat) -> tuple[list[Markup], int]:
    longest = max(map(len, panel.rows))
    left = 44 if longest <= 4 else 84 if longest <= 11 else 112
    side = min((_WIDTH - left - 8) / len(panel.columns), 44.0)
    tall = min(side, 26.0) if len(panel.rows) > 6 else min(side, 34.0)
    top = _TOP + 6 if panel.title else 8
    width, height = side * len(panel.columns), tall * len(panel.rows)
    parts: list[Markup] = []
    cell = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>')
    words = Markup('<text class="cell" x="{:.1f}" y="{:.1f}" text-anchor="middle" fill="{}">{}</text>')
    for r, row in enumerate(panel.values):
        parts.append(_text(left - 5, top + tall * (r + 0.5) + 4, _cut(panel.rows[r], 16), "end"))
        for c, value in enumerate(row):
            share = (value - panel.low) / (panel.high - panel.low) if math.isfinite(value) else 0.0
            fill, ink = heat_colour(share)
            parts.append(cell.format(left + side * c, top + tall * r, side - 1, tall - 1, fill))
            if side >= 18:
                said = f"{value:.{panel.digits}f}" if math.isfinite(value) else "-"
                parts.append(words.format(left + side * (c + 0.5), top + tall * (r + 0.5) + 4, ink, said))
    slanted = max(map(len, panel.columns)) * 6 > side
    below = top + height + 12
    turned = Markup('<text class="tick" text-anchor="end" transform="translate({:.1f} {:.1f}) rotate(-45)">{}</text>')
    for c, name in enumerate(panel.columns):
        x = left + side * (c + 0.5)
        said = _cut(name, 11)
        parts.append(turned.format(x + 3, below - 2, said) if slanted else _text(x, below, said, "middle"))
    end = below + (62 if slanted else 17)
    if panel.x_label:
        parts.append(_text(left + width / 2, end, panel.x_label, "middle", "axis"))
    if panel.y_label:
        parts.append(_side(panel.y_label, top + height, top))
    return parts, int(end + 9)


def _series(inside: Sequence[Markup], label: str, group: str | None, frame: int | None, hidden: bool = False) -> Markup:
    own = Markup(' data-group="{}"{}').format(group, Markup(" hidden") if hidden else "") if group else ""
    place = Markup(' data-frame="{}"').format(frame) if frame is not None else ""
    return Markup("<g{}{}><title>{}</title>{}</g>").format(own, place, _plain(label), Markup("").join(inside))


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Markup:
    form = '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(form).format(kind, x, y, anchor, _plain(words))


def _side(words: str, bottom: float, top: float = _TOP) -> Markup:
    form = '<text class="axis" text-anchor="middle" transform="translate(11 {:.1f}) rotate(-90)">{}</text>'
    return Markup(form).format((top + bottom) / 2, _plain(words))


def _rule(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<path class="rule" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x1, y1, x2, y2)


def _room(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of an axis that holds the values."""
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):  # a level line, or a single point: in the middle
        room = 0.5 if abs(high) < 1e-9 else 0.1 * abs(high)
        low, high = low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(most: int, low: float, high: float, *, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers on an axis and what they are called; whole: of what has no parts, such as epochs."""
    found = MaxNLocator(most, integer=whole, min_n_ticks=1 if whole else 2).tick_values(low, high)
    within = [float(t) for t in found if low <= t <= high]
    return list(zip(within, _numbers(within), strict=True))


def _numbers(values: Sequence[float]) -> list[str]:
    """As few digits as tell them apart, three at least."""
    named: list[str] = []
    for digits in range(3, 9):
        named = [f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e") for value in values]
        if len({*named}) == len(named):
            break
    return named


def _cut(words: str, longest: int) -> str:
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def _plain(words: str) -> str:
    return shown(str(words))
