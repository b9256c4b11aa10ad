"""`report DIR…`: one self-contained HTML page, tidy CSV and figures."""

from __future__ import annotations

import argparse
from pathlib import Path

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
        help="where to write (default: the first run directory)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print the page's path; ValueError where there is nothing to report."""
    # pandas, seaborn and matplotlib take seconds to import: only once the arguments are good
    from bench.report import write_report

    print(write_report(args.directories, args.out or args.directories[0]))
    return 0
