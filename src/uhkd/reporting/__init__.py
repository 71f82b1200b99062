"""Create a self-contained HTML page from run folders, and its figures as files."""

from typing import TYPE_CHECKING

from uhkd.lazy import import_on_use

if TYPE_CHECKING:
    from uhkd.reporting.grouping import Report, arrange
    from uhkd.reporting.page import MARK, render
    from uhkd.reporting.run_data import Run, read_runs
    from uhkd.reporting.save_figures import write_figures

__all__ = ["MARK", "Report", "Run", "arrange", "read_runs", "render", "write_figures"]

import_on_use(
    __name__,
    {
        "uhkd.reporting.grouping": ("Report", "arrange"),
        "uhkd.reporting.page": ("MARK", "render"),
        "uhkd.reporting.run_data": ("Run", "read_runs"),
        "uhkd.reporting.save_figures": ("write_figures",),
    },
)
