"""Write the figures of a report as PNG and SVG files."""

import re
from pathlib import Path

from uhkd.reporting import feature_figures, figures
from uhkd.reporting.draw import images
from uhkd.reporting.grouping import Report
from uhkd.runs import write_atomically


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Write each figure with all its panels into a folder, named by network, method and kind; return the paths.

    Raises:
        OSError: when a file cannot be written.
    """
    written: dict[str, list[Path]] = {}
    for student_group in report.student_groups:
        drawings = [("", drawing) for drawing in figures.of_student_group(student_group)]
        drawings += [
            (f"{_slug(g.label)}-", drawing) for g in student_group.groups for drawing in feature_figures.of_group(g)
        ]
        for method, drawing in drawings:
            name = f"{_slug(student_group.student)}-{method}{drawing.key.partition('-')[2]}"
            name = f"{name}-{drawing.key}" if name in written else name
            written[name] = [folder / f"{name}.png", folder / f"{name}.svg"]
            content = images(["png", "svg"], drawing.panels, drawing.title, drawing.legend)
            for path, file in zip(written[name], content, strict=True):
                write_atomically(path, file)
    return [path for paths in written.values() for path in paths]


def _slug(text: str) -> str:
    """Return up to 40 characters that are valid in file names on every file system."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", text).strip("-")[:40] or "unnamed"
