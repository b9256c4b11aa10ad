"""`report DIR…`: one self-contained HTML page, tidy CSV and figures."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TextIO

NAME = "report"
HELP = "turn run directories into one HTML page, tidy CSV and figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="run directory, as `run` writes it; several are put into one report",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: the run directory; required with several)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print the page's path; ValueError where there is nothing to report."""
    if args.out is None and len(args.directories) > 1:
        raise ValueError("--out is required with several run directories")
    # pandas, seaborn and matplotlib take seconds to import: only once the arguments are good
    from bench.report import write_report
    from bench.report.load import RecordWarning

    with warnings.catch_warnings():
        # every unusable file is named, the second of a kind as well
        warnings.simplefilter("always", RecordWarning)
        warnings.showwarning = _to_stderr
        index = write_report(args.directories, args.out or args.directories[0])
    print(index)
    return 0


def _to_stderr(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line per warning, without the source line that Python adds."""
    print(f"warning: {message}", file=sys.stderr)
