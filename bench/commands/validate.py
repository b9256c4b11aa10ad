"""Check records against the schema: what is wrong, file and field, and what is allowed.

Exit code: 0 all valid, 1 some are not, one line for each fault, 2 usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "check records against the schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="FILE|DIR",
        help="a record, records as lines (.jsonl), a run directory or a folder of records",
    )


def run(args: argparse.Namespace) -> int:
    from bench.records import RecordError, entries

    there = []
    for source in args.sources:
        if not source.exists():
            raise ValueError(f"{source} does not exist; pass a record or a run directory")
        own = list(entries(source))
        if not own:
            raise ValueError(f"{source} holds no records; pass a directory `bench run` has written")
        there += own
    wrong = 0
    for entry in there:
        try:
            entry.read()
        except RecordError as error:
            wrong += 1
            for fault in error.faults:
                print(f"{error.place}: {fault}")
    print(f"{len(there) - wrong} of {len(there)} records are valid", file=sys.stderr)
    return 1 if wrong else 0
