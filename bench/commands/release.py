"""Measure all that is published, from one clean state of the code; or check that it is complete.

Stopped at any moment, the same command goes on where it was. --check measures nothing: it says what
is missing, of modified code, of another state of the code or of another machine. --pack checks, and
writes what is complete as data to publish. Exit code: 0 done, or complete; 1 incomplete; 2 usage, a
modified tree included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "measure all that is published, or check it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: reports/release; installed, in ./jfbbench-runs",
    )
    parser.add_argument("--check", action="store_true", help="say what is missing or mixed")
    parser.add_argument("--plan", action="store_true", help="say what would be measured")
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="DIR",
        help="write the complete release as data: lines, Parquet, schema, card, checksums, archive",
    )
    parser.add_argument(
        "--only", metavar="PART[,PART…]", help="these parts of the plan (default: all)"
    )
    parser.add_argument(
        "--part", default="1/1", metavar="I/N", help="the I-th of N shares of every preset's jobs"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, check or show the plan."""
    from bench import places
    from bench.release.campaign import measure_release
    from bench.release.check import check_release
    from bench.release.plan import PLAN
    from jfbcore import _validate

    out = args.out or places.release()
    names = tuple(part.name for part in PLAN)
    only = names if args.only is None else tuple(name.strip() for name in args.only.split(","))
    for name in only:
        _validate.one_of("only", name, names)
    plan = [part for part in PLAN if part.name in only]
    if args.plan:
        for part in plan:
            jobs = len(part.jobs()) or 1
            print(f"{part.name:10} {jobs:5} jobs  {part.core_hours():5.1f} h  {part.what}")
        print(f"{'all':21}  {sum(part.core_hours() for part in plan):5.1f} h on one core")
        return 0
    if args.check or args.pack is not None:
        findings = check_release(out, plan)
        for line in findings.lines():
            print(line)
        print(findings.summary())
        if args.pack is not None and findings.complete:
            import jfbcore
            from bench.release.pack import pack_release

            print(pack_release(out, plan, args.pack, jfbcore.__version__))
        return 0 if findings.complete else 1
    seconds = measure_release(out, plan, part=args.part)
    print(f"measured in {seconds / 3600:.2f} h; records in {out}", file=sys.stderr)
    return 0
