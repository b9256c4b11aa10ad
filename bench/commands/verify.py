"""Measure the paper's seven claims; print each with its number and verdict."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.arguments import integer

HELP = "check the paper's claims"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: reports/runs/verify")
    parser.add_argument("--threads", type=integer, metavar="N", help="default: all cores")


def run(args: argparse.Namespace) -> int:
    import torch

    from bench.environment import ROOT, default_threads
    from bench.verify.run import verify
    from bench.verify.scope import full, quick
    from jfbcore import _validate

    threads = default_threads() if args.threads is None else args.threads
    torch.set_num_threads(_validate.positive_int("threads", threads))
    out = args.out or ROOT / "reports" / "runs" / "verify"
    claims = verify(quick() if args.quick else full(), out)
    for claim in claims:
        print(f"{claim.number}. {claim.verdict:15s} {claim.claim}")
        print(f"   {claim.value}")
    print(f"{out / 'verify.json'}")
    return 0
