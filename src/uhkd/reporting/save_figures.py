"""The report's figures as files for papers and slides: PNG and SVG of each, all panels in one."""

import re
from collections.abc import Iterator
from pathlib import Path

from uhkd.reporting import feature_figures, figures
from uhkd.reporting.draw import images
from uhkd.reporting.figure_data import Drawing
from uhkd.reporting.grouping import Report
from uhkd.runs import write_atomically

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
        paths = [folder / f"{name}.png", folder / f"{name}.svg"]
        for path, content in zip(
            paths, images(["png", "svg"], drawing.panels, drawing.title, drawing.legend), strict=True
        ):
            write_atomically(path, content)
        written += paths
    return written


def _named(report: Report) -> Iterator[tuple[str, Drawing]]:
    for family in report.families:
        for drawing in figures.of_family(family):
            yield f"{_slug(family.student)}-{drawing.key.partition('-')[2]}", drawing
        for group in family.groups:
            for drawing in feature_figures.of_group(group):
                yield f"{_slug(family.student)}-{_slug(group.label)}-{drawing.key.partition('-')[2]}", drawing


def _slug(text: str) -> str:
    """Letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", text).strip("-")[:_LONGEST] or "unnamed"
