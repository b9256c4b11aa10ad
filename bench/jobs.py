"""A job is a case, a probe and a seed; an order is a job and how it is to be run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bench import records
from bench.case import Case
from bench.identity import identity, stem
from bench.probes.probe import Probe
from bench.probes.step import Step
from bench.slurm import SlurmOptions

#: the probe of a sweep
STEP = Step()
#: what the record of every job has; a probe's own fields come to it
_COMMON = (
    *("schema_version", "case", "plugins", "status", "reason", "peak_rss_bytes", "machine"),
    *("threads", "variables", "null_reasons", "versions", "git", "fingerprint"),
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How jobs are run.

    `timeout`: seconds a job may take, without those in which it waited for a processor.
    `memory_limit`: bytes of address space per job, or None. `time_limit`: seconds after which no
    further job is started, or None. `part` (i, n): every n-th job from the i-th on, so that n
    processes share a folder. `notes`: limitations its report must state.
    `spare`: worker processes of a local run that are started ahead and wait for their job while
    another is measured; None takes 2 where a case is on CUDA, else 1 beside jobs without seconds.
    On machines of 4 cores and fewer there are none beside a job that is timed, which importing
    would disturb. `build_ahead`: how many processes at a time build compiled cases before any is
    measured; 0 builds none ahead. `slurm`: what a run on Slurm asks of it.
    """

    out: Path
    preset: str
    timeout: float
    resume: bool = False
    threads: int | None = None
    memory_limit: int | None = None
    jobs: str = "local"
    time_limit: float | None = None
    part: tuple[int, int] = (1, 1)
    notes: tuple[str, ...] = ()
    spare: int | None = None
    build_ahead: int = 0
    slurm: SlurmOptions = field(default_factory=SlurmOptions)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: what is measured (`probe`) of what (`case`), with which random numbers."""

    case: Case
    probe: Probe = STEP
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for files, see `bench.identity`."""
        return stem(self.new_record())

    def path(self, out: Path) -> Path:
        """Where the record is while the run lasts."""
        return out / "records" / f"{self.name}.json"

    def new_record(self) -> dict[str, Any]:
        """A record with nothing measured yet. That of a step has every field of the schema, any
        other what all have in common, and its probe's fields."""
        record = records.empty_record(self.case, self.seed)
        if self.probe == STEP:
            return record
        names = (*_COMMON, *self.probe.record_fields)
        own = {"name": self.probe.name, **self.probe.settings}
        for name in ("probe", "rows"):
            del record["null_reasons"][name]
        return {"probe": own, **{name: record.get(name) for name in names}}

    def is_of(self, record: Mapping[str, Any]) -> bool:
        """Whether `record` is of exactly this job, and of the same files from outside."""
        return identity(record) == identity(self.new_record())

    def finished(self, out: Path) -> dict[str, Any] | None:
        """The record that is there of exactly this job; a damaged one is warned about."""
        try:
            record = records.find(out, self.name)
        except records.RecordError as error:
            print(f"warning: {error}; measuring it again", file=sys.stderr)
            return None
        return record if record is not None and self.is_of(record) else None


class Order(NamedTuple):
    """A job and how it is run; `git` is the state of the code, `threads` of a job."""

    job: Job
    settings: RunSettings
    threads: int
    git: dict[str, Any]

    @property
    def case(self) -> Case:
        return self.job.case

    @property
    def seed(self) -> int:
        return self.job.seed

    @property
    def timed(self) -> bool:
        """Whether its seconds are measured."""
        return self.job.probe.timed(self.case)

    def message(self, path: Path | None, probe: Probe | None = None) -> dict[str, Any]:
        """What a worker reads; the record goes to `path`, if any. `probe`: in place of the job's
        own."""
        return {
            "job": self.job if probe is None else replace(self.job, probe=probe),
            "path": path,
            # Where this process finds the modules of what is not the suite's own.
            "modules": [os.path.abspath(place) for place in sys.path],
            "threads": self.threads,
            "memory_limit": self.settings.memory_limit,
            "git": self.git,
        }
