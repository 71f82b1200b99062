"""What a figure shows, as plain data; `svg` draws it for the page, `files` for papers."""

from collections.abc import Sequence
from dataclasses import dataclass

# one word a colour: s0 ... s7 are series, ink is the teacher's and the axes', muted what stands behind
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


@dataclass(frozen=True)
class Line:
    """Points joined by a line, those that are not finite left out. hue: a colour's word. dash: 0 ... 3.

    band: low and high around it. group: key of the group whose line the reader may hide. frame: shown at one place of a slider.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    hue: str
    dash: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    group: str | None = None
    frame: int | None = None
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
class Bar:
    """A row: values side by side, each with its colour and its words; dots: single runs behind a value."""

    label: str
    values: tuple[tuple[float, str, str], ...]
    dots: tuple[float, ...] = ()
    group: str | None = None


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


@dataclass(frozen=True)
class Drawing:
    """A figure. key: unique, fit for a file's name. alt: what it shows, in words with its numbers. how: how to read it.

    frames: words for the places of a slider, empty without one. legend: label, colour and dash of what is in all panels.
    """

    key: str
    title: str
    how: str
    alt: str
    panels: tuple[Panel, ...]
    frames: tuple[str, ...] = ()
    legend: tuple[tuple[str, str, int, str | None], ...] = ()


def heat_colour(value: float) -> tuple[str, str]:
    """Background and text colour of a cell for a value from 0 to 1: pale to deep blue; at least 4.5 to 1 against each other."""
    low, high = (236, 242, 250), (8, 48, 107)
    share = min(max(value, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    background = f"#{red:02x}{green:02x}{blue:02x}"
    dark, white = "#000000", "#ffffff"  # one of them has 4.5 to 1 on any colour
    return background, dark if contrast(background, dark) >= contrast(background, white) else white


def contrast(one: str, two: str) -> float:
    """WCAG 2's contrast ratio of two colours written #rrggbb, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
