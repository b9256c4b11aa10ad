"""List the cases of a preset, one per line, by id."""

from __future__ import annotations

import argparse

HELP = "list the cases of a preset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        default="smoke",
        help="smoke, quick, gate, cpu, gpu, released or targets",
    )
    parser.add_argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="keep cases whose field KEY is VALUE (or one of VALUE,VALUE,…); all of several hold",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="override the preset's device")


def run(args: argparse.Namespace) -> int:
    from bench.presets import select

    for case in select(args.preset, args.filter, args.device):
        print(case.id)
    return 0
