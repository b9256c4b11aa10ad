"""The options that say how jobs are run, the same for every verb that measures."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.arguments import LARGEST_SPACE, LONGEST, at_most, integer, number

if TYPE_CHECKING:
    from bench.jobs import Job, RunSettings

#: seconds a job may take where nobody says
TIMEOUT = 900.0


#: options by name, and what argparse is told of them
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeout": {
        "type": number, "metavar": "S",
        "help": "seconds per job, those in which it waits for a processor not counted; one that "
        "took longer is tried once more",
    },
    "time-limit": {
        "type": number, "metavar": "S",
        "help": "start no job after S seconds, end 10 s later at most; see --resume (local only)",
    },
    "resume": {"action": "store_true", "help": "measure only what is missing"},
    "part": {
        "default": "1/1", "metavar": "I/N",
        "help": "measure the I-th of N shares of the jobs; N processes with the same --out share "
        "them (local only)",
    },
    "threads": {"type": integer, "metavar": "N", "help": "default: OMP_NUM_THREADS, else 1"},
    "memory-limit": {
        "type": number, "metavar": "GIB", "help": "address space of a job, in GiB",
    },
    "jobs": {
        "default": "local",
        "help": "where jobs run: local, or slurm (one cluster job each, see --slurm)",
    },
    "slurm": {
        "action": "append", "default": [], "metavar": "KEY=VALUE",
        "help": "of a job on Slurm: partition, account, qos, memory, constraint, gres, exclusive "
        "(yes or no; default: where timed), throttle, setup (a shell command before Python)",
    },
}  # fmt: skip


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add them; `out` says in words where the records go unless told otherwise."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: {out}")
    for name, keywords in _OPTIONS.items():
        parser.add_argument(f"--{name}", **keywords)


def run_settings(
    args: argparse.Namespace, preset: str, timeout: float, **others: Any
) -> RunSettings:
    """What the options say; `preset` names the run and its folder, `timeout` is the usual one.

    Raises ValueError in one line where an option makes no sense.
    """
    from bench import places
    from bench.jobs import RunSettings
    from bench.slurm import SlurmOptions
    from jfbcore import _validate

    _validate.one_of("jobs", args.jobs, ("local", "slurm"))
    seconds = timeout if args.timeout is None else args.timeout
    limit = args.memory_limit
    if limit is not None:
        _validate.positive("memory-limit", limit)
        limit = int(at_most("memory-limit", limit, _largest_space(), "GiB") * 2**30)
    if args.time_limit is not None:
        _validate.non_negative("time_limit", args.time_limit)
    if args.threads is not None:
        _validate.positive_int("threads", args.threads)
    index, _, count = args.part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"`part` must be I/N with 1 <= I <= N, got {args.part!r}")
    part = int(index), int(count)
    if args.jobs == "local" and args.slurm:
        raise ValueError(f"`slurm` {args.slurm[0]} needs jobs slurm, got jobs {args.jobs}")
    for name, value, usual in (("time-limit", args.time_limit, None), ("part", part, (1, 1))):
        if args.jobs != "local" and value != usual:
            shown = args.part if name == "part" else f"{value:g}"
            raise ValueError(f"`{name}` is for a local run, got {shown} with jobs {args.jobs}")
    found: dict[str, Any] = {
        "out": (args.out or places.runs(preset)).resolve(),
        "preset": preset,
        "timeout": at_most("timeout", _validate.positive("timeout", seconds), LONGEST, "s"),
        "resume": args.resume,
        "threads": args.threads,
        "memory_limit": limit,
        "jobs": args.jobs,
        "time_limit": args.time_limit,
        "part": part,
        "slurm": SlurmOptions.parse(args.slurm),
    }
    return RunSettings(**(found | others))


def _largest_space() -> float:
    """GiB of address space that a job may be limited to: no more than this process is."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return LARGEST_SPACE if hard == resource.RLIM_INFINITY else min(LARGEST_SPACE, hard / 2**30)


def measure(
    args: argparse.Namespace, jobs: Sequence[Job], name: str, timeout: float
) -> list[dict[str, Any] | None]:
    """Run the jobs as the options say, in a temporary folder unless one is given; their records,
    None for a job that was not measured.
    """
    from bench.runner import run_jobs

    if args.out is None and (args.jobs != "local" or args.resume):
        raise ValueError("`out` must be given where records are kept: with --jobs and --resume")
    with contextlib.ExitStack() as stack:
        out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = run_settings(args, name, timeout, out=out.resolve())
        run_jobs(jobs, settings)
        return [job.finished(out) for job in jobs]
