"""Measure the paper's seven claims; print each with its number and verdict.

Every finished measurement is a file under DIR/jobs: interrupted, killed or stopped by
--time-limit, the same command goes on where it was. --quick starts anew each time, asserts its
deterministic parts and exits with 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from bench.arguments import integer, number

HELP = "check the paper's claims"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: reports/runs/verify, or verify-quick there",
    )
    parser.add_argument(
        "--threads", type=integer, metavar="N", help="default: OMP_NUM_THREADS, or 1"
    )
    parser.add_argument(
        "--part",
        default="1/1",
        metavar="I/N",
        help="measure the I-th of N shares of the jobs; N processes with the same --out share them",
    )
    parser.add_argument(
        "--time-limit",
        type=number,
        metavar="SECONDS",
        help="start nothing new after this long and judge what is there; default: none",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from bench import places
    from bench.environment import default_threads
    from bench.verify.claim import Claim
    from bench.verify.run import verify
    from bench.verify.scope import full, quick
    from jfbcore import _validate

    threads = default_threads() if args.threads is None else args.threads
    threads = _validate.positive_int("threads", threads)
    if args.time_limit is not None:
        _validate.non_negative("time_limit", args.time_limit)
    part = _part(args.part)
    if args.quick and part != (1, 1):
        raise ValueError(f"`part` must be 1/1 with --quick, got {args.part!r}")
    torch.set_num_threads(threads)
    # Apart, because the quick scope starts anew: the full one's finished jobs must not go with it.
    name = "verify-quick" if args.quick else "verify"
    out = args.out or places.runs(name)
    scope = quick() if args.quick else full()
    outcome = verify(scope, out, time_limit=args.time_limit, part=part)

    def show(mark: str, claim: Claim) -> None:
        print(f"{mark} {claim.verdict:15s} {claim.claim}")
        parts = (claim.value, *(f"- {finding}" for finding in claim.findings), *claim.tables)
        for part in parts:
            print(textwrap.indent(str(part), "   "))

    for claim in outcome.claims:
        show(f"{claim.number}.", claim)
    for claim in outcome.beyond:
        show("+ ", claim)
    if outcome.missing:
        print(f"{len(outcome.missing)} jobs are missing; the same command continues with them:")
        for job in outcome.missing:
            print(f"   {job.name}")
    for name, error in outcome.crashed.items():
        print(f"crashed: {name}: {error}")
    print(f"{out / 'verify.json'}")
    for line in outcome.failures:
        print(f"bench verify: failed: {line}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"`part` must be I/N with 1 <= I <= N, got {text!r}")
    return int(index), int(count)
