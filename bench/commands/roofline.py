"""Profile one training step per problem and size: where time and bytes go, FLOPs and bytes
counted, and the ratio of the step to the floor that this machine's rates allow.

The last line on stdout is one JSON object. `report DIR` shows what `--out DIR` wrote.
"""

from __future__ import annotations

import argparse
import json

from bench.arguments import integer
from bench.run_options import TIMEOUT, add_run_options, measure

HELP = "profile a training step against what the machine allows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", nargs="+", metavar="P", help="default: all three")
    parser.add_argument(
        "--agents", type=integer, nargs="+", metavar="N", help="agents or goods (default: a few)"
    )
    parser.add_argument("--gradient", nargs="+", default=["jfb"], metavar="G", help="default: jfb")
    parser.add_argument("--batch", type=integer, metavar="B", help="default: the problem's own")
    parser.add_argument(
        "--horizon-steps", type=integer, metavar="T", help="default: the problem's own"
    )
    parser.add_argument("--repeats", type=integer, default=10, help="timed steps (default: 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_run_options(parser, "write nothing; else roofline.json and CSV too")


def run(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from bench.build import check_device
    from bench.case import DEVICES
    from bench.environment import default_threads, describe
    from bench.records import finite
    from bench.registry import METHODS, PROBLEMS
    from bench.roofline.run import assemble, jobs, lines, summary, write
    from jfbcore import _validate

    for problem in args.problem or ():
        PROBLEMS.check(problem)
    for gradient in args.gradient:
        METHODS.check(gradient)
    numbers = {"batch": args.batch, "horizon-steps": args.horizon_steps, "repeats": args.repeats}
    for name, value in [*numbers.items(), *(("agents", n) for n in args.agents or ())]:
        if value is not None:
            _validate.positive_int(name, value)
    _validate.one_of("device", args.device, DEVICES)
    check_device(args.device)
    selected = jobs(
        args.problem,
        args.agents,
        args.gradient,
        repeats=args.repeats,
        batches=(args.batch,),
        n_steps=args.horizon_steps,
        device=args.device,
    )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    records = measure(args, selected, "roofline", TIMEOUT)
    result = assemble(records, describe(None, args.threads or default_threads(), started))
    if not result["cases"] and not result["failed"] and result["unsupported"]:
        missing = result["unsupported"][0]
        raise ValueError(
            f"`gradient` {', '.join(args.gradient)} serves none of the cases asked for; "
            f"{missing['id']}: {missing['reason']}"
        )
    for line in lines(result):
        print(line)
    if args.out is not None:
        print(write(result, args.out))
    print(json.dumps(finite(summary(result)), allow_nan=False))
    return 0 if result["cases"] else 1
