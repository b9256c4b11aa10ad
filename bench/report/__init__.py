"""One self-contained HTML page, tidy CSV and figures from one or more run directories."""

from bench.report.build import write_report
from bench.report.load import Run, load_run

__all__ = ["Run", "load_run", "write_report"]
