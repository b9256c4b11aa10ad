"""How jobs are run: the settings, and their options, the same for every verb that measures."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.arguments import LARGEST_SPACE, LONGEST, at_most, integer, number
from bench.slurm import SlurmOptions

if TYPE_CHECKING:
    from bench.jobs import Job

#: seconds a job may take where nobody says
TIMEOUT = 900.0
#: settings that only `bench run` has options for
_OF_RUN = ("spare", "build_ahead", "notes")


def _option(default: Any, **told: Any) -> Any:
    """A setting, and what argparse is told of its option."""
    return field(default=default, metadata={"told": told})


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How jobs are run; the help of an option says what a setting is.

    `preset` names the run. `memory_limit` is in bytes. `part` (i, n): every n-th job from the i-th
    on. `spare` None takes 2 where a case is on CUDA, else 1 beside jobs without seconds; on
    machines of 4 cores and fewer there are none beside a job that is timed, which importing would
    disturb.
    """

    out: Path
    preset: str
    timeout: float = _option(
        TIMEOUT,
        type=number,
        metavar="S",
        help="seconds per job, those in which it waits for a processor not counted; one that took "
        "longer is tried once more",
    )
    time_limit: float | None = _option(
        None,
        type=number,
        metavar="S",
        help="start no job after S seconds, end 10 s later at most; see --resume (local only)",
    )
    resume: bool = _option(False, action="store_true", help="measure only what is missing")
    part: tuple[int, int] = _option(
        (1, 1),
        metavar="I/N",
        help="measure the I-th of N shares of the jobs; N processes with the same --out share them "
        "(local only)",
    )
    threads: int | None = _option(
        None, type=integer, metavar="N", help="default: OMP_NUM_THREADS, else 1"
    )
    memory_limit: int | None = _option(
        None, type=number, metavar="GIB", help="address space of a job, in GiB"
    )
    jobs: str = _option(
        "local",
        default="local",
        help="where jobs run: local, or slurm (one cluster job each, see --slurm)",
    )
    slurm: SlurmOptions = field(
        default_factory=SlurmOptions,
        metadata={
            "told": {
                "action": "append",
                "metavar": "KEY=VALUE",
                "help": "of a job on Slurm: partition, account, qos, memory, constraint, gres, "
                "exclusive (yes or no; default: where timed), throttle, setup (a shell command "
                "before Python)",
            }
        },
    )
    spare: int | None = _option(
        None,
        type=integer,
        metavar="N",
        help="processes that import ahead of their case, on more than 4 cores; default: 2 on CUDA",
    )
    build_ahead: int = _option(
        0,
        type=integer,
        metavar="N",
        help="build compiled cases, N at a time, before measuring; default: 0",
    )
    notes: tuple[str, ...] = _option(
        (),
        action="append",
        metavar="TEXT",
        help="a limitation of this run that its report must state; may be given repeatedly",
    )


def add_run_options(parser: argparse.ArgumentParser, out: str, *, every: bool = False) -> None:
    """Add them, those of `bench run` alone if `every` one is wanted; `out` says in words where the
    records go unless told otherwise."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: {out}")
    for setting in fields(RunSettings):
        if "told" in setting.metadata and (every or setting.name not in _OF_RUN):
            flag = "--note" if setting.name == "notes" else f"--{setting.name.replace('_', '-')}"
            parser.add_argument(flag, dest=setting.name, **setting.metadata["told"])


def run_settings(
    args: argparse.Namespace, preset: str, timeout: float, **others: Any
) -> RunSettings:
    """What the options say; `preset` names the run and its folder, `timeout` is the usual one.

    Raises ValueError in one line where an option makes no sense.
    """
    from bench import places
    from jfbcore import _validate

    _validate.one_of("jobs", args.jobs, ("local", "slurm"))
    given: dict[str, Any] = {"timeout": timeout}
    for setting in fields(RunSettings):
        value = getattr(args, setting.name, None)
        if "told" in setting.metadata and value is not None:
            given[setting.name] = value
    at_most("timeout", _validate.positive("timeout", given["timeout"]), LONGEST, "s")
    if args.threads is not None:
        _validate.positive_int("threads", args.threads)
    for name in ("time_limit", "spare", "build_ahead"):
        if name in given:
            _validate.non_negative(name.replace("build_", "build-"), given[name])
    if (limit := args.memory_limit) is not None:
        _validate.positive("memory-limit", limit)
        limit = at_most("memory-limit", limit, _largest_space(), "GiB")
        given["memory_limit"] = int(limit * 2**30)
    if args.part is not None:
        index, _, count = args.part.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError(f"`part` must be I/N with 1 <= I <= N, got {args.part!r}")
        given["part"] = int(index), int(count)
    if args.jobs == "local" and args.slurm:
        raise ValueError(f"`slurm` {args.slurm[0]} needs jobs slurm, got jobs {args.jobs}")
    for name, value in (("time-limit", args.time_limit), ("part", args.part)):
        if args.jobs != "local" and value not in (None, "1/1"):
            shown = value if name == "part" else f"{value:g}"
            raise ValueError(f"`{name}` is for a local run, got {shown} with jobs {args.jobs}")
    given["slurm"] = SlurmOptions.parse(args.slurm or ())
    given["notes"] = tuple(given.get("notes", ()))
    out = (args.out or places.runs(preset)).resolve()
    return RunSettings(**({"out": out, "preset": preset} | given | others))


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
