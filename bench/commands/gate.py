"""Fail on a regression: records against a committed baseline, or time against another revision.

Without DIR the gate preset is measured first, into a temporary folder. With --base only time is
judged, base and head interleaved on this machine. Exit code: 0 no regression, 1 regression,
2 usage, 3 missing data, 4 the gate itself failed, 5 undecided: the times do not say.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from bench.arguments import integer

HELP = "fail on a regression against a baseline, or of time against a revision"
#: the arguments of each way to use the gate
_GOES_WITH = {
    "--self-test": ("--comparisons", "--out", "--resume"),
    "--base": ("--base", "--head"),
    "a baseline": ("DIR", "--baseline", "--update", "--blame"),
}
#: comparisons in a self-test that takes minutes; the committed table has more
_COMPARISONS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", nargs="?", type=Path, metavar="DIR", help="records to judge")
    add("--baseline", type=Path, metavar="FILE", help="default: the suite's own, see `bench where`")
    add(
        "--update",
        action="store_true",
        help="show the difference, then make these records the baseline",
    )
    add("--blame", metavar="REV..REV", help="name the commit that moved each worse quantity first")
    add("--base", metavar="REV|DIR", help="judge time: the source to compare with")
    add("--head", metavar="REV|DIR", help="the source to judge (default: the working tree)")
    add(
        "--self-test", action="store_true", help="inject known regressions and count what is caught"
    )
    add(
        "--comparisons",
        type=integer,
        metavar="N",
        help="time comparisons of equal source in the self-test, and of each slowdown up to 100 "
        f"(default: {_COMPARISONS})",
    )
    add("--resume", action="store_true", help="add to the self-test on file, up to N comparisons")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the self-test writes (default: reports/runs/gate-selftest)",
    )


def run(args: argparse.Namespace) -> int:
    from bench.gate.outcome import GateError, Outcome

    _check(args)
    try:
        if args.self_test:
            return _self_test(args)
        return _time(args) if args.base is not None else _deterministic(args)
    except (ValueError, TypeError, OSError):
        raise
    except Exception as error:
        # A bug of the gate is not a regression of the code, which an uncaught one would exit as.
        said = str(error)
        if not isinstance(error, GateError):
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        print(f"bench gate: the gate failed: {said}", file=sys.stderr)
        return Outcome.ERROR


def _check(args: argparse.Namespace) -> None:
    """Each way to use the gate has arguments of its own; ValueError for a mixture."""
    given = {"DIR": args.directory}
    for names in _GOES_WITH.values():
        given |= {name: getattr(args, name[2:]) for name in names if name != "DIR"}
    mode = "--self-test" if args.self_test else "--base" if args.base else "a baseline"
    allowed = _GOES_WITH[mode]
    for name, value in given.items():
        if value is not None and value is not False and name not in allowed:
            raise ValueError(f"{name} does not go with {mode}; allowed: {', '.join(allowed)}")


def _self_test(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    import pandas as pd

    from bench import places
    from bench.environment import describe
    from bench.gate.outcome import Outcome
    from bench.gate.results import COLUMNS
    from bench.gate.selftest import self_test
    from bench.gate.time import Settings
    from bench.records import write_json
    from jfbcore import _validate

    comparisons = _COMPARISONS if args.comparisons is None else args.comparisons
    _validate.positive_int("comparisons", comparisons)
    out = args.out or places.runs("gate-selftest")
    # First of all: half an hour should not end at a folder that cannot be written.
    started = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(out / "environment.json", describe("gate self-test", 1, started))
    rows = self_test(comparisons, Settings(), out, args.resume)
    print(pd.DataFrame([row.cells for row in rows], columns=COLUMNS).to_string(index=False))
    return Outcome.PASS if all(row.met for row in rows) else Outcome.REGRESSION


def _time(args: argparse.Namespace) -> int:
    from bench.environment import ROOT
    from bench.gate.process import tree_pairs
    from bench.gate.time import TIMED_CASES, Settings, compare_times, outcome_of, time_table
    from bench.gate.trees import open_tree

    settings = Settings()
    with open_tree("base", args.base) as base, open_tree("head", args.head or str(ROOT)) as head:
        found = compare_times(tree_pairs(base, head), TIMED_CASES, settings)
    print(time_table(found, settings))
    return outcome_of(found)


def _deterministic(args: argparse.Namespace) -> int:
    from bench import places
    from bench.gate.blame import blame, blame_table, commits_of
    from bench.gate.counts import compare, summarise, table, unusable
    from bench.gate.outcome import Outcome
    from bench.records import read_records, write_json

    path = args.baseline or places.data("baseline.json")
    # Read first: a bad baseline or range should not cost a measurement.
    baseline = _baseline(path, args.update)
    commits = [] if args.blame is None else commits_of(args.blame)
    if args.directory is not None and not args.directory.is_dir():
        raise ValueError(f"`DIR` {args.directory} is not a directory; pass one `bench run` wrote")
    with tempfile.TemporaryDirectory() as folder:
        if args.directory is None:
            _measure(Path(folder))
        head = summarise(read_records(args.directory or Path(folder)))
    if not head["cases"]:
        print(f"no usable records under {args.directory}", file=sys.stderr)
        return Outcome.MISSING
    outcome = Outcome.PASS
    if baseline is not None:
        old, new = (summary["versions"].get("torch") for summary in (baseline, head))
        if old != new:
            print(
                f"warning: baseline measured with torch {old}, records with {new}; byte counts "
                "may differ",
                file=sys.stderr,
            )
        comparison = compare(baseline, head)
        print(table(comparison))
        outcome = comparison.outcome
        if commits and outcome is Outcome.REGRESSION:
            print(blame_table(blame(comparison, baseline, commits)))
    if args.update:
        if reason := unusable(head, baseline):
            print(f"not written: {path}: {reason}", file=sys.stderr)
            return Outcome.MISSING
        write_json(path, head)
        print(f"wrote {path}: {len(head['cases'])} cases")
        return Outcome.PASS
    return outcome


def _baseline(path: Path, update: bool) -> dict[str, Any] | None:
    """The baseline in `path`. One that --update replaces may be missing or of another form."""
    from bench.gate.counts import read_baseline

    try:
        return read_baseline(path)
    except ValueError as error:
        if not update:
            raise
        if path.exists():
            print(f"warning: nothing to compare with: {error}", file=sys.stderr)
        return None


def _measure(folder: Path) -> None:
    from bench.presets import PRESETS, TIMEOUTS
    from bench.runner import RunSettings, run_cases

    settings = RunSettings(out=folder, preset="gate", timeout=TIMEOUTS["gate"], threads=1)
    run_cases(list(PRESETS["gate"]()), 1, settings)
