"""Fail on a regression: records against a committed baseline, or time against another revision.

Without DIR the gate preset is measured first, into a temporary folder. With --base only time is
judged, base and head interleaved on this machine. Exit code: 0 no regression, 1 regression,
2 usage, 3 missing data, 4 the gate itself failed.
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
    "--self-test": ("--comparisons", "--out"),
    "--base": ("--base", "--head"),
    "a baseline": ("DIR", "--baseline", "--update", "--blame"),
}
#: comparisons of each kind in a self-test that takes minutes; the committed table has 100
_COMPARISONS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="records to judge")
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="default: the suite's own, see `bench where`"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="show the difference, then make these records the baseline",
    )
    parser.add_argument(
        "--blame", metavar="REV..REV", help="name the commit that moved each worse quantity first"
    )
    parser.add_argument("--base", metavar="REV|DIR", help="judge time: the source to compare with")
    parser.add_argument(
        "--head", metavar="REV|DIR", help="the source to judge (default: the working tree)"
    )
    parser.add_argument(
        "--self-test", action="store_true", help="inject known regressions and count what is caught"
    )
    parser.add_argument(
        "--comparisons",
        type=integer,
        metavar="N",
        help=f"time comparisons of each kind in the self-test (default: {_COMPARISONS})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the self-test writes (default: reports/runs/gate-selftest)",
    )


def run(args: argparse.Namespace) -> int:
    from bench.gate import GateError, Outcome

    _check(args)
    try:
        if args.self_test:
            return _self_test(args)
        return _time(args) if args.base is not None else _deterministic(args)
    except GateError as error:
        print(f"bench gate: the gate failed: {error}", file=sys.stderr)
        return Outcome.ERROR
    except (ValueError, TypeError, OSError):
        raise
    except Exception as error:
        # A bug of the gate is not a regression of the code, which an uncaught one would exit as.
        traceback.print_exc()
        print(f"bench gate: the gate failed: {type(error).__name__}: {error}", file=sys.stderr)
        return Outcome.ERROR


def _check(args: argparse.Namespace) -> None:
    """Each way to use the gate has arguments of its own; ValueError for a mixture."""
    given = {
        "DIR": args.directory, "--baseline": args.baseline, "--update": args.update or None,
        "--blame": args.blame, "--base": args.base, "--head": args.head,
        "--comparisons": args.comparisons, "--out": args.out,
    }  # fmt: skip
    mode = "--self-test" if args.self_test else "--base" if args.base else "a baseline"
    allowed = _GOES_WITH[mode]
    for name, value in given.items():
        if value is not None and name not in allowed:
            raise ValueError(f"{name} does not go with {mode}; allowed: {', '.join(allowed)}")


def _self_test(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from bench import places
    from bench.ab.compare import Settings
    from bench.environment import describe
    from bench.gate import Outcome
    from bench.records import write_json
    from bench.selftest.results import text_table
    from bench.selftest.run import self_test
    from jfbcore import _validate

    comparisons = _COMPARISONS if args.comparisons is None else args.comparisons
    _validate.positive_int("comparisons", comparisons)
    out = args.out or places.runs("gate-selftest")
    # First of all: half an hour should not end at a folder that cannot be written.
    started = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(out / "environment.json", describe("gate self-test", 1, started))
    rows = self_test(comparisons, Settings(), out)
    print(text_table(rows))
    return Outcome.PASS if all(row.met for row in rows) else Outcome.REGRESSION


def _time(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bench.ab.cases import TIMED_CASES
    from bench.ab.compare import Settings, tree_pairs
    from bench.ab.gate import compare_times, outcome_of, time_table
    from bench.ab.tree import open_tree
    from bench.environment import ROOT

    head_name = str(ROOT) if args.head is None else args.head
    settings = Settings()
    with open_tree("base", args.base) as base, open_tree("head", head_name) as head:
        cases = tqdm(TIMED_CASES, unit="case", file=sys.stderr)
        found = compare_times(tree_pairs(base, head), cases, settings)
    print(time_table(found, settings))
    return outcome_of(found)


def _deterministic(args: argparse.Namespace) -> int:
    from bench import places
    from bench.gate import Outcome, compare, summarise, table, write_baseline
    from bench.records import read_records

    path = args.baseline or places.data("baseline.json")
    # Read first: a bad baseline or range should not cost a measurement.
    baseline = _baseline(path, args.update)
    commits = _commits(args)
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
        _warn_of_versions(baseline, head)
        comparison = compare(baseline, head)
        print(table(comparison))
        outcome = comparison.outcome
        if commits and outcome is Outcome.REGRESSION:
            from bench.blame import blame, blame_table

            print(blame_table(blame(comparison, baseline, commits)))
    if args.update:
        if unusable := _unusable(head, baseline):
            print(f"not written: {path}: {unusable}", file=sys.stderr)
            return Outcome.MISSING
        write_baseline(path, head)
        print(f"wrote {path}: {len(head['cases'])} cases")
        return Outcome.PASS
    return outcome


def _unusable(head: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """Why `head` cannot become the baseline, or "": what it lacks would never be gated again.

    A case of the old baseline may go only together with the preset's.
    """
    from bench.gate import CRASHED
    from bench.presets import PRESETS

    crashed = [case for case, found in head["cases"].items() if found["status"] == CRASHED]
    if crashed:
        return f"crashed: {', '.join(crashed)}"
    wanted = {case.id for case in PRESETS["gate"]()}.intersection(
        baseline["cases"] if baseline else ()
    )
    gone = sorted(wanted - set(head["cases"]))
    return f"without a record: {', '.join(gone)}" if gone else ""


def _baseline(path: Path, update: bool) -> dict[str, Any] | None:
    """The baseline in `path`. One that --update replaces may be missing or of another form."""
    from bench.gate import read_baseline

    if not update:
        return read_baseline(path)
    if not path.exists():
        return None
    try:
        return read_baseline(path)
    except ValueError as error:
        print(f"warning: nothing to compare with: {error}", file=sys.stderr)
        return None


def _commits(args: argparse.Namespace) -> list[str]:
    if args.blame is None:
        return []
    from bench.blame import commits_of

    return commits_of(args.blame)


def _warn_of_versions(baseline: dict[str, Any], head: dict[str, Any]) -> None:
    old, new = baseline["versions"].get("torch"), head["versions"].get("torch")
    if old != new:
        print(
            f"warning: baseline measured with torch {old}, records with {new}; byte counts may "
            "differ",
            file=sys.stderr,
        )


def _measure(folder: Path) -> None:
    from bench.presets import PRESETS, TIMEOUTS
    from bench.runner import RunSettings, run_cases

    settings = RunSettings(out=folder, preset="gate", timeout=TIMEOUTS["gate"], threads=1)
    run_cases(list(PRESETS["gate"]()), 1, settings)
