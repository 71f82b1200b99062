"""The content of figures as plain data; `uhkd.reporting.draw` draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

# light and dark; s0 ... s7: series; ink: text and the teacher; muted: axis labels. CSS variables on the page.
_COLOURS = {
    "s0": ("#b93a0b", "#ff9b5e"),
    "s1": ("#1d4ed8", "#84aaff"),
    "s2": ("#5f6773", "#a9b1bd"),
    "s3": ("#15743a", "#5fd38a"),
    "s4": ("#7e22ce", "#d0a2ff"),
    "s5": ("#0b6b75", "#4fd3dd"),
    "s6": ("#b8145a", "#ff8ab8"),
    "s7": ("#7a5200", "#e2b84b"),
    "ink": ("#1b1f24", "#e8ebef"),
    "muted": ("#57606a", "#aeb6c0"),
    "grid": ("#d0d7de", "#3a424c"),
    "paper": ("#ffffff", "#14171b"),
    "raised": ("#f4f6f8", "#1e2329"),
    "link": ("#0a4fb3", "#8ab8ff"),
    "good": ("#116329", "#6fdd8b"),
    "bad": ("#a40e26", "#ff9b9b"),
}
LIGHT, DARK = ({name: colours[i] for name, colours in _COLOURS.items()} for i in (0, 1))
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def hue_of(label: str, count: int) -> tuple[int, int]:
    """Return the colour (0 to 7) and dash of a method, the same in all figures. count: number of other methods before it."""
    fixed = {"uhkd": (0, 0), "kd": (1, 0), "scratch": (2, 0)}
    return fixed.get(label) or (3 + count % 5, count // 5 % 4)


@dataclass(frozen=True)
class Series:
    """A series of a panel. group: key of a group that the page can hide. frame: the slider position that shows it."""

    label: str
    group: str | None = field(default=None, kw_only=True)
    frame: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Line(Series):
    """Points connected by a line, without those that are not finite. hue: a name in `LIGHT`. dash: index into `DASHES`.

    band: lower and upper edge of an area around the line.
    """

    x: Sequence[float]
    y: Sequence[float]
    hue: str
    dash: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Curves:
    """A panel of lines."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log: bool = False


@dataclass(frozen=True)
class Bar(Series):
    """A row of bars. values: value, colour and text of each. dots: the single runs."""

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
    """A heat map of values (rows, columns), coloured from `low` to `high`, with `digits` decimal places."""

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
Legend = tuple[tuple[str, str, int, str | None], ...]  # label, colour, dash and group


@dataclass(frozen=True)
class Drawing:
    """A figure. key: unique, usable as a file name. caption: how to read it. alt: its content as text.

    frames: labels of the slider positions; empty without a slider.
    """

    key: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    frames: tuple[str, ...] = ()
    legend: Legend = ()
