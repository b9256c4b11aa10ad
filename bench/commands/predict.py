"""Predict memory at full size from small exact measurements, and where a gradient stops fitting."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.arguments import integer, number

HELP = "predict peak memory and the iterations at which it exceeds a limit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", default="quadrotor", help="quadrotor, bicycle or consumption")
    parser.add_argument("--agents", type=integer, nargs="+", default=[1, 6, 20, 50, 100])
    parser.add_argument("--gradients", nargs="+", default=["jfb", "unrolled"], metavar="GRADIENT")
    parser.add_argument("--batch", type=integer, metavar="B", help="default: the problem's own")
    parser.add_argument("--memory", type=number, default=24.0, metavar="GIB", help="default: 24")
    parser.add_argument(
        "--fill",
        type=Path,
        metavar="DIR",
        help="instead put the predictions into the CUDA records of a run, computed on the CPU",
    )


def run(args: argparse.Namespace) -> int:
    if args.fill is not None:
        from bench.fill_predictions import fill_predictions

        counts = fill_predictions(args.fill)
        print(f"{counts['filled']} records filled, {counts['left']} left; in {args.fill}")
        return 0
    from bench.registry import METHODS, PROBLEMS, default_batch, default_steps
    from jfbcore import _validate

    PROBLEMS.check(args.problem)
    for gradient in args.gradients:
        METHODS.check(gradient, "gradients")
    for n_agents in args.agents:
        _validate.positive_int("agents", n_agents)
    batch = default_batch(args.problem) if args.batch is None else args.batch
    _validate.positive_int("batch", batch)
    memory = _validate.positive("memory", args.memory) * 2**30

    from tqdm import tqdm

    from bench.predict import crossovers
    from bench.report.style import format_bytes

    n_steps = default_steps(args.problem)
    print(
        f"{args.problem}, batch {batch}, {n_steps} time steps, exact K; predicted peak live bytes"
    )
    print(
        f"{'agents':>6s} {'gradient':20s} {'K=100':>10s} {'K=500':>10s}  K at {args.memory:g} GiB"
    )
    rows = crossovers(
        args.agents,
        args.gradients,
        problem=args.problem,
        batch_size=batch,
        n_steps=n_steps,
        memory=memory,
    )
    found = []
    total = len(args.agents) * len(args.gradients)
    for row in tqdm(rows, total=total, unit="case", file=sys.stderr):
        if row["reason"] is not None:
            print(f"{row['n_agents']:6d} {row['gradient']:20s} unsupported: {row['reason']}")
            found.append(row)
            continue
        crossover = row["crossover_iterations"]
        fits = crossover == float("inf")
        print(
            f"{row['n_agents']:6d} {row['gradient']:20s} {format_bytes(row['bytes_at_100']):>10s} "
            f"{format_bytes(row['bytes_at_500']):>10s}  "
            f"{'never' if fits else f'{crossover:,.0f}'}  (model error {row['model_error']:.1e})"
        )
        found.append(row | {"crossover_iterations": None if fits else crossover})
    print(json.dumps({"problem": args.problem, "memory_gib": args.memory, "rows": found}))
    return 0
