"""Compare records with a committed baseline. Exit code: 0 no regression, 1 regression, 2 usage,
3 missing data.

Without DIR the gate preset is measured first, into a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HELP = "fail on a regression against a baseline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="records to judge")
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="default: reports/baseline.json"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="show the difference, then make these records the baseline",
    )


def run(args: argparse.Namespace) -> int:
    from bench.environment import ROOT
    from bench.gate import Outcome, compare, read_baseline, summarise, table, write_baseline
    from bench.records import read_records

    path = args.baseline or ROOT / "reports" / "baseline.json"
    # Read first: a bad baseline should not cost a measurement.
    baseline = None if args.update and not path.exists() else read_baseline(path)
    if args.directory is not None and not args.directory.is_dir():
        raise ValueError(f"`DIR` {args.directory} is not a directory; pass one `bench run` wrote")
    if args.directory is None:
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder))
            head = summarise(read_records(Path(folder)))
    else:
        head = summarise(read_records(args.directory))
    if not head["cases"]:
        print(f"no usable records under {args.directory}", file=sys.stderr)
        return Outcome.MISSING
    outcome = Outcome.PASS
    if baseline is not None:
        if baseline["versions"].get("torch") != head["versions"].get("torch"):
            print(
                f"warning: baseline measured with torch {baseline['versions'].get('torch')}, "
                f"records with {head['versions'].get('torch')}; byte counts may differ",
                file=sys.stderr,
            )
        comparison = compare(baseline, head)
        print(table(comparison))
        outcome = comparison.outcome
    if args.update:
        write_baseline(path, head)
        print(f"wrote {path}: {len(head['cases'])} cases")
        return Outcome.PASS
    return outcome


def _measure(folder: Path) -> None:
    from bench.presets import PRESETS, TIMEOUTS
    from bench.runner import RunSettings, run_cases

    settings = RunSettings(out=folder, preset="gate", timeout=TIMEOUTS["gate"], threads=1)
    run_cases(list(PRESETS["gate"]()), 1, settings)
