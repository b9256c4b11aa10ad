"""One self-contained HTML page, tidy CSV and figures from one or more run directories."""

from bench.report.load import Run, load_run
from bench.report.page import write_report

__all__ = ["Run", "load_run", "write_report"]
