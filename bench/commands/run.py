"""Measure the cases of a preset or of a grid, each in a fresh process, one record each."""

from __future__ import annotations

import argparse
import shlex
import sys

from bench.arguments import integer
from bench.run_options import TIMEOUT, add_run_options, run_settings
from bench.selection import add_grid, add_preset

HELP = "measure the cases of a preset or of a grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    add_grid(parser)
    parser.add_argument(
        "--seeds", type=integer, default=1, metavar="N", help="seeds 0..N-1 per case"
    )
    add_run_options(parser, "reports/runs/PRESET, or adhoc there; installed, in ./jfbbench-runs")
    parser.add_argument(
        "--spare",
        type=integer,
        metavar="N",
        help="processes that import ahead of their case, on more than 4 cores; default: 2 on CUDA",
    )
    parser.add_argument(
        "--build-ahead",
        type=integer,
        default=0,
        metavar="N",
        help="build compiled cases, N at a time, before measuring; default: 0",
    )
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="TEXT",
        help="a limitation of this run that its report must state; may be given repeatedly",
    )


def run(args: argparse.Namespace) -> int:
    from bench.presets import TIMEOUTS
    from bench.runner import run_cases
    from bench.selection import ADHOC, USUAL, cases_of
    from jfbcore import _validate

    cases = cases_of(args)
    preset = ADHOC if args.problem is not None else args.preset or USUAL
    _validate.positive_int("seeds", args.seeds)
    for name in ("spare", "build_ahead"):
        if (count := getattr(args, name)) is not None:
            _validate.non_negative(name.replace("_", "-"), count)
    settings = run_settings(
        args,
        preset,
        TIMEOUTS.get(preset, TIMEOUT),
        notes=tuple(args.note),
        spare=args.spare,
        build_ahead=args.build_ahead,
    )
    # The machine that submits to a cluster need not be one that measures.
    if args.jobs == "local" and any(case.device == "cuda" for case in cases):
        from bench.build import check_device

        check_device("cuda")
    counts = run_cases(cases, args.seeds, settings)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{summary or 'nothing to do'}; records in {args.out or settings.out}")
    if counts:
        where = shlex.quote(str(args.out or settings.out))
        print(f"a page of them: python -m bench report {where}", file=sys.stderr)
    return 0
