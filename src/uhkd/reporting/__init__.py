"""Run folders -> one self-contained HTML page, and its figures as files."""

from uhkd.reporting.files import write_figures
from uhkd.reporting.folders import Run, read_runs
from uhkd.reporting.groups import Report, arrange
from uhkd.reporting.page import MARK, render

__all__ = ["MARK", "Report", "Run", "arrange", "read_runs", "render", "write_figures"]
