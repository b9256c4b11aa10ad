"""Predict memory at full size from small exact measurements, and where a gradient stops fitting."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.arguments import integer, number
from bench.run_options import TIMEOUT, add_run_options, measure

_PREDICTIONS = ("bytes_at_100", "bytes_at_500", "crossover_iterations", "model_error")
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
    add_run_options(parser, "a temporary folder")


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

    from bench.case import Case
    from bench.jobs import Job
    from bench.probes.prediction import Prediction
    from bench.report.style import format_bytes

    n_steps = default_steps(args.problem)
    jobs = [
        Job(
            case=Case(
                problem=args.problem,
                n_agents=n_agents,
                gradient=gradient,
                tolerance=None,
                max_iterations=1,
                batch_size=batch,
                n_steps=n_steps,
            ),
            probe=Prediction(memory=(memory,)),
        )
        for n_agents in args.agents
        for gradient in args.gradients
    ]
    records = measure(args, jobs, "predict", TIMEOUT)
    print(
        f"{args.problem}, batch {batch}, {n_steps} time steps, exact K; predicted peak live bytes"
    )
    print(
        f"{'agents':>6s} {'gradient':20s} {'K=100':>10s} {'K=500':>10s}  K at {args.memory:g} GiB"
    )
    found = []
    for job, record in zip(jobs, records, strict=True):
        head = {"n_agents": job.case.n_agents, "gradient": job.case.gradient}
        name = f"{job.case.n_agents:6d} {job.case.gradient:20s}"
        if record is None or not record["rows"]:
            status, reason = ("not measured", "") if record is None else _refusal(record)
            print(f"{name} {status}: {reason}")
            found.append(head | dict.fromkeys(_PREDICTIONS) | {"reason": reason or status})
            continue
        (row,) = record["rows"]
        at = "never" if row["crossover"] is None else f"{row['crossover']:,.0f}"
        print(
            f"{name} {format_bytes(row['bytes_at_100']):>10s} "
            f"{format_bytes(row['bytes_at_500']):>10s}  {at}  "
            f"(model error {row['model_error']:.1e})"
        )
        row["crossover_iterations"] = row["crossover"]
        found.append(head | {key: row[key] for key in _PREDICTIONS} | {"reason": None})
    print(json.dumps({"problem": args.problem, "memory_gib": args.memory, "rows": found}))
    return 0


def _refusal(record: dict[str, Any]) -> tuple[str, str]:
    return record["status"], record["reason"]
