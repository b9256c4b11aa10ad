"""Predict memory at full size from small exact measurements, and where a gradient stops fitting."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.arguments import integer, number
from bench.run_options import TIMEOUT, add_run_options, measure

if TYPE_CHECKING:
    from bench.jobs import Job

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
        from bench.predict import fill_predictions

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
    found = [_row(job, record) for job, record in zip(jobs, records, strict=True)]
    print(
        f"{args.problem}, batch {batch}, {n_steps} time steps, exact K; predicted peak live bytes"
    )
    print(_text(found, args.memory))
    print(json.dumps({"problem": args.problem, "memory_gib": args.memory, "rows": found}))
    return 0


def _row(job: Job, record: dict[str, Any] | None) -> dict[str, Any]:
    head: dict[str, Any] = {"n_agents": job.case.n_agents, "gradient": job.case.gradient}
    if record is None or not record["rows"]:
        reason = "not measured" if record is None else record["reason"]
        return head | dict.fromkeys(_PREDICTIONS) | {"reason": reason}
    (row,) = record["rows"]
    row["crossover_iterations"] = row["crossover"]
    return head | {name: row[name] for name in _PREDICTIONS} | {"reason": None}


def _text(rows: list[dict[str, Any]], memory: float) -> str:
    import pandas as pd

    from bench.report.style import format_bytes

    shown = []
    for row in rows:
        line = {"agents": row["n_agents"], "gradient": row["gradient"]}
        if row["reason"] is not None:
            shown.append(line | {"": row["reason"]})
            continue
        count = row["crossover_iterations"]
        shown.append(line | {
            "K=100": format_bytes(row["bytes_at_100"]),
            "K=500": format_bytes(row["bytes_at_500"]),
            f"K at {memory:g} GiB": "never" if count is None else f"{count:,.0f}",
            "model error": f"{row['model_error']:.1e}",
        })  # fmt: skip
    return pd.DataFrame(shown).fillna("").to_string(index=False)
