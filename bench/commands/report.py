"""`report DIR…`: one self-contained HTML page, tidy CSV and figures."""

from __future__ import annotations

import argparse
import sys
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
        "--out", type=Path, metavar="DIR", help="where to write (default: the first run directory)"
    )
    parser.add_argument(
        "--release",
        action="store_true",
        help="write only what may be published: one clean code, one machine, nothing missing",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print the page's path; ValueError where there is nothing to report.

    With --release, 1 and a line for each reason where the runs may not be published.
    """
    # pandas, seaborn and matplotlib take seconds to import: only once the arguments are good
    from bench.report import write_report

    if args.release:
        from bench.release.check import refusals
        from bench.report.load import load_runs

        if found := refusals(load_runs(args.directories)):
            print("\n".join(found))
            print(f"not written: {len(found)} reasons not to publish", file=sys.stderr)
            return 1
    print(write_report(args.directories, args.out or args.directories[0]))
    return 0
