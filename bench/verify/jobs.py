"""A scope as a list of jobs, each a file: measured once, kept through any interruption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.environment import git_revision, processor
from bench.records import write_json
from bench.verify import derivatives, maximisers, resources, traces
from bench.verify.scope import Scope

Row = dict[str, Any]

JOB_VERSION = 2
#: initial states of the derivative's error; every one of them is unrolled in float64
_DERIVATIVE_STATES = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: rows of `table`. `settings` says what was asked, `seconds` is a guess.

    A file on disk belongs to this job only where its settings are the same to the letter.
    """

    name: str
    table: str
    seed: int
    seconds: float
    settings: str
    measure: Callable[[], list[Row]] = field(compare=False)


def jobs(scope: Scope) -> list[Job]:
    """All jobs: seed 0 of everything before any other seed, the short ones first."""
    found = [*_training_jobs(scope), *_resource_jobs(scope), *_derivative_jobs(scope)]
    names = [job.name for job in found]
    assert len(set(names)) == len(names), "two jobs would share a file"
    return sorted(found, key=lambda job: (job.seed, job.seconds))


def _training_jobs(scope: Scope) -> Iterator[Job]:
    for name, table, runs, measure in (
        ("trace", "traces", scope.traces, traces.trace),
        ("maximisers", "maximisers", scope.maximisers, maximisers.maximiser_rows),
    ):
        for run in runs:
            for seed in range(run.seeds):
                yield Job(
                    name=f"{name}-{run.case.problem}-{run.case.n_agents}-{run.variant}-s{seed}",
                    table=table, seed=seed, seconds=run.seconds, settings=repr(run),
                    measure=partial(measure, run, seed),
                )  # fmt: skip
    steps = scope.descent_steps
    for case, seconds in scope.descents:
        for seed in range(scope.descent_seeds):
            yield Job(
                name=f"descent-{case.problem}-{case.n_agents}-s{seed}",
                table="descent", seed=seed, seconds=seconds, settings=f"{case!r}, {steps} steps",
                measure=partial(traces.descend, case, steps, max(1, steps // 10), seed),
            )  # fmt: skip


def _resource_jobs(scope: Scope) -> Iterator[Job]:
    for case in scope.memory:
        yield Job(
            name=f"memory-{case.problem}-{case.n_agents}",
            table="memory", seed=0, seconds=3.0 * case.n_steps,
            settings=f"{case!r}, K {scope.iterations}",
            measure=partial(resources.memory_rows, case, scope.iterations),
        )  # fmt: skip
    for case in scope.crossovers:
        for gradient in scope.crossover_gradients:
            yield Job(
                name=f"crossover-{case.problem}-{case.n_agents}-{gradient}",
                table="crossovers", seed=0, seconds=50.0 if gradient == resources.NETWORK else 12.0,
                settings=f"{case!r}, {resources.MACHINES}",
                measure=partial(resources.crossover_rows, case, gradient),
            )  # fmt: skip
    for case in scope.races:
        for seed in range(scope.race_seeds):
            yield Job(
                name=f"race-{case.problem}-{case.n_agents}-{case.gradient}-s{seed}",
                table="races", seed=seed, seconds=1.4 * scope.race_seconds,
                settings=f"{case!r}, {scope.race_seconds} s",
                measure=partial(resources.race, case, scope.race_seconds, seed),
            )  # fmt: skip
    for case, seconds in scope.scale:
        for seed in range(scope.scale_seeds):
            yield Job(
                name=f"scale-{case.problem}-{case.n_agents}-s{seed}",
                table="scale", seed=seed, seconds=seconds, settings=repr(case),
                measure=partial(resources.scale_rows, case, seed),
            )  # fmt: skip


def _derivative_jobs(scope: Scope) -> Iterator[Job]:
    for case, seconds in scope.derivatives:
        for seed in range(scope.derivative_seeds):
            yield Job(
                name=f"derivative-{case.problem}-{case.n_agents}-s{seed}",
                table="derivatives", seed=seed, seconds=seconds,
                settings=f"{case!r}, {scope.derivative_counts}, {_DERIVATIVE_STATES} states",
                measure=partial(
                    derivatives.derivative_rows, case, ("scaled", "plain"), scope.derivative_counts,
                    _DERIVATIVE_STATES, seed,
                ),
            )  # fmt: skip


@dataclass(frozen=True)
class Store:
    """The jobs done so far, one file each under DIR/jobs, written atomically."""

    directory: Path

    def path(self, job: Job) -> Path:
        return self.directory / "jobs" / f"{job.name}.json"

    def read(self, job: Job) -> dict[str, Any] | None:
        """The job's file; None where there is none, or one of other settings, or half of one."""
        try:
            found = json.loads(self.path(job).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("version") != JOB_VERSION:
            return None
        return found if found.get("settings") == job.settings else None

    def write(self, job: Job, rows: list[Row], seconds: float, error: str | None = None) -> None:
        """Keep what was measured, or the `error` that ended it: a crash is not tried again."""
        content = {
            "version": JOB_VERSION,
            "table": job.table,
            "settings": job.settings,
            "seconds": seconds,
            "error": error,
            "git": git_revision(),
            "machine": {"cpu": processor(), "threads": torch.get_num_threads()},
            "rows": rows,
        }
        write_json(self.path(job), content)

    def missing(self, wanted: Iterable[Job]) -> list[Job]:
        return [job for job in wanted if self.read(job) is None]

    def tables(self, wanted: Sequence[Job]) -> dict[str, list[Row]]:
        """The rows of all jobs that are done, by table, in the order of `wanted`."""
        found: dict[str, list[Row]] = {}
        for job in wanted:
            content = self.read(job)
            if content is not None and content["rows"]:
                found.setdefault(job.table, []).extend(content["rows"])
        return found

    def errors(self, wanted: Sequence[Job]) -> dict[str, str]:
        """The jobs that crashed, with the reason."""
        found = {}
        for job in wanted:
            error = (self.read(job) or {}).get("error")
            if error:
                found[job.name] = error
        return found

    def machines(self, wanted: Sequence[Job]) -> set[str]:
        """What the jobs were measured on, where their files say it."""
        found = set()
        for job in wanted:
            made_on = (self.read(job) or {}).get("machine")
            if made_on:
                count = made_on["threads"]
                found.add(f"{made_on['cpu']} with {count} thread{'s' if count != 1 else ''}")
        return found

    def revisions(self, wanted: Sequence[Job]) -> set[str]:
        """The commits the jobs were measured at."""
        contents = [self.read(job) for job in wanted]
        return {str((c.get("git") or {}).get("commit")) for c in contents if c is not None}


def run_jobs(
    wanted: Sequence[Job],
    store: Store,
    *,
    time_limit: float | None = None,
    progress: Callable[[Job], None] = lambda job: None,
) -> None:
    """Measure what `store` lacks, in order; no job starts once `time_limit` seconds are over.

    Several processes may share a store, each with its own share of the jobs.
    """
    began = time.monotonic()
    for job in wanted:
        if store.read(job) is not None:
            progress(job)
            continue
        if time_limit is not None and time.monotonic() - began >= time_limit:
            return
        started = time.monotonic()
        rows: list[Row] = []
        error = None
        try:
            rows = job.measure()
        except (RuntimeError, ArithmeticError, AssertionError, ValueError) as crash:
            # Hours of other measurements should not be lost to one that breaks.
            error = f"{type(crash).__name__}: {(str(crash).splitlines() or [''])[0]}"
        store.write(job, rows, time.monotonic() - started, error)
        progress(job)
