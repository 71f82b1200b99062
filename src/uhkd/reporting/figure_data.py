"""What a figure shows, as plain data; `uhkd.reporting.draw` draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

# s0 ... s7 are series, ink is text and the teacher, muted the axes' labels; the page has them as CSS variables
LIGHT = {
    "s0": "#b93a0b",
    "s1": "#1d4ed8",
    "s2": "#5f6773",
    "s3": "#15743a",
    "s4": "#7e22ce",
    "s5": "#0b6b75",
    "s6": "#b8145a",
    "s7": "#7a5200",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "grid": "#d0d7de",
    "paper": "#ffffff",
    "raised": "#f4f6f8",
    "link": "#0a4fb3",
    "good": "#116329",
    "bad": "#a40e26",
}
DARK = {
    "s0": "#ff9b5e",
    "s1": "#84aaff",
    "s2": "#a9b1bd",
    "s3": "#5fd38a",
    "s4": "#d0a2ff",
    "s5": "#4fd3dd",
    "s6": "#ff8ab8",
    "s7": "#e2b84b",
    "ink": "#e8ebef",
    "muted": "#aeb6c0",
    "grid": "#3a424c",
    "paper": "#14171b",
    "raised": "#1e2329",
    "link": "#8ab8ff",
    "good": "#6fdd8b",
    "bad": "#ff9b9b",
}
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def hue_of(label: str, count: int) -> tuple[int, int]:
    """Return the colour (0 ... 7) and dash of a method, the same in all figures; count: other methods before it."""
    fixed = {"uhkd": (0, 0), "kd": (1, 0), "scratch": (2, 0)}
    return fixed.get(label) or (3 + count % 5, count // 5 % 4)


@dataclass(frozen=True)
class Series:
    """What belongs together in a panel. group: key of a group that the page can hide. frame: shown at one place of a slider."""

    label: str
    group: str | None = field(default=None, kw_only=True)
    frame: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Line(Series):
    """Points joined by a line, those that are not finite left out. hue: a name in `LIGHT`. dash: index into `DASHES`.

    band: low and high around it.
    """

    x: Sequence[float]
    y: Sequence[float]
    hue: str
    dash: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Curves:
    """A panel of lines over two axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log: bool = False


@dataclass(frozen=True)
class Bar(Series):
    """A row: values side by side, each with its colour and its text; dots: single runs behind a value."""

    values: tuple[tuple[float, str, str], ...]
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bars:
    """A panel of rows. as_dots: a mark at the value instead of a bar from 0."""

    title: str
    x_label: str
    rows: tuple[Bar, ...]
    as_dots: bool = False


@dataclass(frozen=True)
class Heat:
    """A panel of cells, (rows, columns), coloured from `low` to `high`; `digits` after the point."""

    title: str
    x_label: str
    y_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Sequence[Sequence[float]]
    low: float
    high: float
    digits: int = 2


Panel = Curves | Bars | Heat
Legend = tuple[tuple[str, str, int, str | None], ...]  # label, colour, dash and group of what is in all panels


@dataclass(frozen=True)
class Drawing:
    """A figure. key: unique, fit for a file's name. alt: what it shows, in words with its numbers. how: how to read it.

    frames: words for the places of a slider, empty without one.
    """

    key: str
    title: str
    how: str
    alt: str
    panels: tuple[Panel, ...]
    frames: tuple[str, ...] = ()
    legend: Legend = ()
