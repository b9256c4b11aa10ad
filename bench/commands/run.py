"""Measure the cases of a preset or of a grid, each in a fresh process, one record each."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.arguments import LARGEST_SPACE, LONGEST, at_most, integer, number
from bench.selection import add_grid, add_preset

HELP = "measure the cases of a preset or of a grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    add_grid(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: reports/runs/PRESET, or adhoc there; installed, in ./jfbbench-runs",
    )
    parser.add_argument(
        "--seeds", type=integer, default=1, metavar="N", help="seeds 0..N-1 per case"
    )
    parser.add_argument("--timeout", type=number, metavar="S", help="seconds per case")
    parser.add_argument(
        "--time-limit",
        type=number,
        metavar="S",
        help="start no case after S seconds, end 10 s later at most; see --resume (local only)",
    )
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
    parser.add_argument("--resume", action="store_true", help="measure only what is missing")
    parser.add_argument(
        "--threads", type=integer, metavar="N", help="default: OMP_NUM_THREADS, else 1"
    )
    parser.add_argument(
        "--memory-limit", type=number, metavar="GIB", help="address space of a case, in GiB"
    )
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="TEXT",
        help="a limitation of this run that its report must state; may be given repeatedly",
    )
    parser.add_argument(
        "--jobs",
        default="local",
        help="where cases run: local, or slurm (one job per case, see --slurm)",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of a job on Slurm: partition, account, qos, memory, constraint, gres, exclusive "
        "(yes or no; default: where timed), throttle, setup (a shell command before Python)",
    )


def run(args: argparse.Namespace) -> int:
    from bench import places
    from bench.grid import NAME, TIMEOUT
    from bench.presets import TIMEOUTS
    from bench.runner import RunSettings, run_cases
    from bench.selection import USUAL, cases_of
    from bench.slurm import SlurmOptions
    from jfbcore import _validate

    cases = cases_of(args)
    preset = NAME if args.problem is not None else args.preset or USUAL
    _validate.positive_int("seeds", args.seeds)
    _validate.one_of("jobs", args.jobs, ("local", "slurm"))
    timeout = TIMEOUTS.get(preset, TIMEOUT) if args.timeout is None else args.timeout
    timeout = at_most("timeout", _validate.positive("timeout", timeout), LONGEST, "s")
    limit = args.memory_limit
    if limit is not None:
        _validate.positive("memory-limit", limit)
        limit = int(at_most("memory-limit", limit, _largest_space(), "GiB") * 2**30)
    if args.time_limit is not None:
        _validate.positive("time-limit", args.time_limit)
        if args.jobs != "local":
            raise ValueError(
                f"`time-limit` is for a local sweep, got {args.time_limit:g} with jobs {args.jobs}"
            )
    if args.slurm and args.jobs == "local":
        raise ValueError(f"`slurm` {args.slurm[0]} needs jobs slurm, got jobs {args.jobs}")
    for name in ("spare", "build_ahead"):
        if (count := getattr(args, name)) is not None:
            _validate.non_negative(name.replace("_", "-"), count)
    settings = RunSettings(
        out=(args.out or places.runs(preset)).resolve(),
        preset=preset,
        timeout=timeout,
        resume=args.resume,
        threads=None if args.threads is None else _validate.positive_int("threads", args.threads),
        memory_limit=limit,
        jobs=args.jobs,
        notes=tuple(args.note),
        time_limit=args.time_limit,
        spare=args.spare,
        build_ahead=args.build_ahead,
        slurm=SlurmOptions.parse(args.slurm),
    )
    # The machine that submits to a cluster need not be one that measures.
    if args.jobs == "local" and any(case.device == "cuda" for case in cases):
        from bench.build import check_device

        check_device("cuda")
    counts = run_cases(cases, args.seeds, settings)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{summary or 'nothing to do'}; records in {args.out or settings.out}")
    return 0


def _largest_space() -> float:
    """GiB of address space that a case may be limited to: no more than this process is."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return LARGEST_SPACE if hard == resource.RLIM_INFINITY else min(LARGEST_SPACE, hard / 2**30)
