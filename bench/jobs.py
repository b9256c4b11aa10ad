"""What a sweep is asked to do: its settings, and one job for each case and seed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.case import Case
from bench.slurm import SlurmOptions


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a sweep runs its cases.

    `memory_limit`: bytes of address space per case, or None. `time_limit`: seconds after which a
    local sweep starts no further case, or None. `notes`: limitations its report must state.
    `spare`: worker processes of a local sweep that are started ahead and wait for their case while
    another is measured; None takes 2 where a case is on CUDA, else 0. There are none on machines
    of 4 cores and fewer, where importing would disturb what is timed. `build_ahead`: how many
    processes at a time build compiled cases before any is measured; 0 builds none ahead. `slurm`:
    what a sweep on Slurm asks of it.
    """

    out: Path
    preset: str
    timeout: float
    resume: bool = False
    threads: int | None = None
    memory_limit: int | None = None
    jobs: str = "local"
    time_limit: float | None = None
    notes: tuple[str, ...] = ()
    spare: int | None = None
    build_ahead: int = 0
    slurm: SlurmOptions = field(default_factory=SlurmOptions)


class Job(NamedTuple):
    """One case and seed of a sweep; `git` is the state of the code, `threads` of a case."""

    case: Case
    seed: int
    settings: RunSettings
    threads: int
    git: dict[str, Any]

    def order(self, path: Path, **changes: bool) -> dict[str, Any]:
        """What a worker reads: it measures and writes the record to `path` unless `changes`
        ask it to `predict` or to `build`.
        """
        return {
            "case": self.case.to_order(self.seed),
            "path": str(path),
            # Where this process finds the modules of what is not the suite's own.
            "modules": [os.path.abspath(place) for place in sys.path],
            "threads": self.threads,
            "memory_limit": self.settings.memory_limit,
            "git": self.git,
            "predict": False,
            "build": False,
        } | changes
