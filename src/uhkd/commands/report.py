"""`report`: create an HTML page from run folders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uhkd import __version__
from uhkd.console import log_info, pluralize
from uhkd.errors import UhkdError
from uhkd.recipe import build
from uhkd.recipe.arguments import ReportArguments
from uhkd.reporting.grouping import arrange
from uhkd.reporting.page import MARK, render
from uhkd.reporting.run_data import read_runs
from uhkd.reporting.save_figures import write_figures
from uhkd.runs import check_own, check_place, read_mapping, write_atomically
from uhkd.runs.comparison import RECIPE_FILE

_NAME = "report.html"


def report(arguments: ReportArguments | None = None, **options: Any) -> dict[str, Any]:
    """Write one self-contained HTML page from run folders alone.

    Options: runs (a folder or several), out and figures, see `uhkd.recipe.arguments.ReportArguments`.

    Returns:
        page: its path. runs: names of the runs in it. figures: paths of the figure files, with the option `figures`. notes:
        what was left out or could not be read.

    Raises:
        UhkdError: for a path without a run, or an output path that is in use.
    """
    if arguments is None:
        given = options.get("runs", ())
        paths = [given] if isinstance(given, str | os.PathLike) else given
        arguments = build(ReportArguments, options | {"runs": tuple(os.fspath(path) for path in paths)})
    runs, notes = read_runs(arguments.runs)
    default = Path(arguments.runs[0])
    if len(arguments.runs) > 1:
        default = Path(os.path.commonpath([Path(path).resolve().parent for path in arguments.runs]))
    page = Path(arguments.out) if arguments.out else default / _NAME
    if page.suffix != ".html":
        page = page / _NAME
    check_place(page.parent)
    if page.exists() and not _is_report(page):
        raise UhkdError(f"{page} exists and is not a report of uhkd; delete it, or choose another --out")
    content = arrange(runs, _title(arguments.runs), notes)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render(content, __version__))
    figures: list[Path] = []
    if arguments.figures:
        check_own(page.parent, "figures")
        folder = page.with_name("figures")
        folder.mkdir(exist_ok=True)
        figures = write_figures(content, folder)
        log_info(f"wrote {len(figures)} figures to {folder}")
    log_info(f"report on {pluralize(len(runs), 'run')}: {page} (open it in a browser; no other file is needed)")
    return {"page": page, "runs": [run.name for run in runs], "figures": figures, "notes": [*content.notes]}


def _is_report(page: Path) -> bool:
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return MARK.encode() in file.read(4096)


def _title(paths: Sequence[str]) -> str:
    """Return the title of a comparison, or the names of the folders."""
    plan = Path(paths[0]) / RECIPE_FILE
    if len(paths) == 1 and plan.is_file() and not plan.is_symlink():
        try:
            title = read_mapping(plan).get("title")
        except (UhkdError, OSError):
            title = None
        if isinstance(title, str) and title:
            return title
    names = [Path(path).resolve().name for path in paths]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runs and folders"
