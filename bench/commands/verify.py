"""Measure the paper's seven claims; print each with its number and verdict.

Every measurement is a record under DIR/records: interrupted, killed or stopped by --time-limit, the
same command goes on where it was. --quick starts anew unless told to --resume, asserts its
deterministic parts and exits with 1 where one does not hold; it says what is consistent with a
claim, never a verdict.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import Any

from bench.run_options import add_run_options, run_settings

HELP = "check the paper's claims"
#: seconds a job may take
_TIMEOUT = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    parser.add_argument("--plan", action="store_true", help="say what a full check measures")
    add_run_options(parser, "reports/runs/verify, or verify-quick there")


def run(args: argparse.Namespace) -> int:
    from bench.verify import plan, verify

    if args.plan:
        print("\n".join(plan()))
        return 0
    # Apart, because the quick check starts anew: the other one's records must not go with it.
    name = "verify-quick" if args.quick else "verify"
    settings = run_settings(args, name, _TIMEOUT, resume=args.resume or not args.quick)
    if args.quick and settings.part != (1, 1):
        raise ValueError(f"`part` must be 1/1 with --quick, got {args.part!r}")
    outcome = verify(args.quick, settings)
    for claim in (*outcome.claims, *outcome.beyond):
        _show(claim)
    if outcome.missing:
        print(f"{len(outcome.missing)} jobs are missing; the same command continues with them:")
        for missing in outcome.missing:
            print(f"   {missing}")
    for failed, reason in outcome.failed.items():
        print(f"failed: {failed}: {reason}")
    print(f"{settings.out / 'verify.json'}")
    for line in outcome.failures:
        print(f"bench verify: failed: {line}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _show(claim: dict[str, Any]) -> None:
    mark = "+ " if claim["number"] is None else f"{claim['number']}."
    print(f"{mark} {claim['verdict']:15s} {claim['claim']}")
    for part in (claim["value"], *(f"- {text}" for text in claim["findings"]), *claim["tables"]):
        print(textwrap.indent(str(part), "   "))
