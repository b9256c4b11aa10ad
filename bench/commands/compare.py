"""Put two runs side by side: a release and one's own, or two machines.

Exact counts, statuses and verdicts must be equal; step times are given as ratios with intervals,
for all methods together (the machines' speeds) and for each beside the others. Either DIR may be a
folder of run directories. Exit code: 0 what must be equal is, 1 it is not, 2 usage, 3 nothing in
common.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "put two runs side by side"
_NOTHING = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("first", type=Path, metavar="DIR", help="what to compare with: a release")
    parser.add_argument("second", type=Path, metavar="DIR", help="the run to compare")


def run(args: argparse.Namespace) -> int:
    """Print the comparison; the exit code says whether what must be equal is."""
    from bench.compare import compare_runs, text

    found = compare_runs(args.first, args.second)
    if not found.common:
        print(
            f"bench compare: {args.first} and {args.second} have no case in common; `bench run` "
            "with the same preset measures the same cases",
            file=sys.stderr,
        )
        return _NOTHING
    print(text(found))
    return 0 if found.equal else 1
