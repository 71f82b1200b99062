"""`report`: run folders as one page to look at."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uhkd import __version__
from uhkd.console import log_info
from uhkd.errors import UhkdError
from uhkd.recipe import build
from uhkd.recipe.arguments import ReportArguments
from uhkd.reporting import MARK, arrange, read_runs, render, write_figures
from uhkd.runs import check_own, check_place, read_mapping, write_atomically

_NAME = "report.html"


def report(arguments: ReportArguments | None = None, **options: Any) -> dict[str, Any]:
    """Write one self-contained HTML page on some runs, made from their folders alone, and return what was written.

    As words: runs (a folder or several), out and figures, see `uhkd.recipe.arguments.ReportArguments`.

    Returns:
        page: its path. runs: names of the runs in it. figures: paths of the figures, with `figures`. notes: what was left out
        or could not be read.

    Raises:
        UhkdError: for a path without a run in it, or a place that something else has.
    """
    if arguments is None:
        given = options.get("runs", ())
        options["runs"] = tuple(
            os.fspath(path) for path in ([given] if isinstance(given, str | os.PathLike) else given)
        )
        arguments = build(ReportArguments, options)
    plan_file = arguments
    runs, notes = read_runs(plan_file.runs)
    page = (
        Path(plan_file.out)
        if plan_file.out
        else (Path(plan_file.runs[0]) / _NAME if len(plan_file.runs) == 1 else Path(_NAME))
    )
    if page.suffix != ".html":
        page = page / _NAME
    check_place(page.parent)
    if page.exists() and not _ours(page):
        raise UhkdError(f"{page} is there already and is no report of ours; delete it, or choose another --out")
    found = arrange(runs, _title(plan_file.runs), notes)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render(found, __version__))
    written: list[Path] = []
    if plan_file.figures:
        check_own(page.parent, "figures")
        folder = page.with_name("figures")
        folder.mkdir(exist_ok=True)
        written = write_figures(found, folder)
        log_info(f"{len(written)} figures are in {folder}")
    s = "s" if len(runs) > 1 else ""
    log_info(f"report on {len(runs)} run{s}: {page} (open it in a browser; it needs nothing else)")
    return {"page": page, "runs": [run.name for run in runs], "figures": written, "notes": [*found.notes]}


def _ours(page: Path) -> bool:
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return MARK.encode() in file.read(4096)


def _title(given: Sequence[str]) -> str:
    """A comparison's own title, or the names of the folders."""
    names = [Path(path).resolve().name for path in given]
    plan_file = Path(given[0]) / "compare.yaml"
    if len(given) == 1 and plan_file.is_file() and not plan_file.is_symlink():
        try:
            title = read_mapping(plan_file).get("title")
        except (ValueError, OSError):
            title = None
        if isinstance(title, str) and title:
            return title
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runs and folders"
