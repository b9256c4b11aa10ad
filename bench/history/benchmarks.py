"""One training step of each quick case: asv's view of `bench.measure`.

Times are sampled by asv itself, so that `asv continuous` has a spread to judge by. Every other
quantity is exact: once per commit `setup_cache` has each case measured as `bench run` does, by the
runner in a process of its own, and reads its record. Cases that a gradient cannot serve are n/a.
"""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

# At the top: asv forks the process of a benchmark from one that has imported this module
# ("forkserver" in asv.conf.json), so that torch is imported once and not several hundred times.
import torch

from bench.build import Unsupported, build_problem
from bench.case import Case
from bench.environment import default_threads
from bench.jobs import Job, RunSettings
from bench.measure import Step
from bench.presets import quick
from bench.runner import run_jobs

#: what is tracked: every combination of these that is a quick case; the others are n/a. asv takes
#: the lists from the working tree and runs their entries on every commit, so they are literal.
PARAMETERS = {
    "problem": ("quadrotor", "bicycle", "consumption"),
    "agents": (1, 20),
    "method": (
        *("jfb", "implicit", "unrolled", "unrolled-checkpoint", "direct"),
        *("cvxpylayers", "torchdeq"),
    ),
    "map": ("scaled", "plain"),
    "mode": ("to tolerance", "50 iterations"),
}
Key = tuple[str, int, str, str, str]


def key(case: Case) -> Key:
    """The parameters of a case, as asv shows them."""
    mode = "to tolerance" if case.tolerance is not None else f"{case.max_iterations} iterations"
    return case.problem, case.n_agents, case.gradient, case.map, mode


#: the cases as the commit at hand defines them, whose package is installed
CASES = {key(case): case for case in quick()}
_TIMEOUT = 600.0


@functools.lru_cache(maxsize=1)
def _step(*case: Any) -> Step:
    """The step of a case, built once per process: asv calls `setup` before every sample."""
    _known(case)
    torch.set_num_threads(default_threads())
    try:
        return Step(CASES[case])
    except Unsupported as unsupported:
        raise NotImplementedError(unsupported.reason) from unsupported


def _known(case: tuple[Any, ...]) -> None:
    """NotImplementedError, which asv shows as n/a, where the commit at hand has no such case."""
    if case not in CASES:
        raise NotImplementedError(f"this commit has no case {case}")


class _Timed:
    """How asv samples a time: 3 to 10 times a round, in no more than half a second where they
    suffice. With `number` 1 it calls `setup` before every sample."""

    params = tuple(map(list, PARAMETERS.values()))
    param_names = tuple(PARAMETERS)
    timeout = _TIMEOUT
    version = "4"
    warmup_time = 0.1
    number = 1
    rounds = 2
    repeat = (3, 10, 0.5)

    def setup(self, *case: Any) -> None:
        self.step = _step(*case)
        # Here and not in the timed call: dropping the last graph takes time too.
        self.step.clear()


class Times(_Timed):
    """Seconds of a whole training step."""

    def time_step(self, *case: Any) -> None:
        self.step()


class BackwardTimes(_Timed):
    """Seconds of its backward pass; the rest is the forward pass."""

    def setup(self, *case: Any) -> None:
        super().setup(*case)
        self.cost = self.step.forward()
        self.step.synchronise()

    def time_backward(self, *case: Any) -> None:
        self.cost.backward()
        self.step.synchronise()


class Quantities:
    """Exact byte counts, iterations and residuals; smaller is better."""

    params = tuple(map(list, PARAMETERS.values()))
    param_names = tuple(PARAMETERS)
    timeout = _TIMEOUT
    version = "3"

    def setup_cache(self) -> dict[Key, dict]:
        jobs = {name: Job(case=replace(case, timed=False)) for name, case in CASES.items()}
        with tempfile.TemporaryDirectory() as folder:
            settings = RunSettings(out=Path(folder), preset="quick", timeout=_TIMEOUT)
            run_jobs(list(jobs.values()), settings)
            return {name: job.finished(settings.out) or {} for name, job in jobs.items()}

    setup_cache.timeout = 6 * _TIMEOUT  # type: ignore[attr-defined]

    def setup(self, records: dict[Key, dict], *case: Any) -> None:
        _known(case)
        if records[case]["status"] == "unsupported":
            raise NotImplementedError(records[case]["reason"])

    def track_peak_live_bytes(self, records: dict[Key, dict], *case: Any) -> float:
        return _read(records[case], "peak_live_tensor_bytes")

    def track_saved_bytes(self, records: dict[Key, dict], *case: Any) -> float:
        return _read(records[case], "saved_tensor_bytes")

    def track_iterations(self, records: dict[Key, dict], *case: Any) -> float:
        return _read(records[case], "iterations", "mean")

    def track_missed_tolerance(self, records: dict[Key, dict], *case: Any) -> float:
        """The largest residual over the tolerance, 1 where that was reached.

        Below it the last iterate is anywhere: a residual that grows there is nothing lost. n/a
        where exactly K iterations were asked for, whose residual is one of rounding.
        """
        asked = CASES[case].tolerance
        if asked is None:
            return math.nan
        tolerance = asked * build_problem(CASES[case]).gradient_scale
        return max(_read(records[case], "residual", "max") / tolerance, 1.0)

    def track_cuda_peak_bytes(self, records: dict[Key, dict], *case: Any) -> float:
        return _read(records[case], "cuda", "max_allocated_bytes")


#: headings of the pages, and units. Not "bytes", which asv rounds to three digits: B is exact.
_SHOWN = {
    Times.time_step: ("A training step", "seconds"),
    BackwardTimes.time_backward: ("Its backward pass", "seconds"),
    Quantities.track_peak_live_bytes: ("Peak of live tensors", "B"),
    Quantities.track_saved_bytes: ("Saved for the backward pass", "B"),
    Quantities.track_iterations: ("Inner iterations", "iterations"),
    Quantities.track_missed_tolerance: ("Residual over tolerance", "1"),
    Quantities.track_cuda_peak_bytes: ("Peak of the CUDA allocator", "B"),
}
for benchmark, (heading, unit) in _SHOWN.items():
    vars(benchmark).update(pretty_name=heading, unit=unit)


def _read(record: dict, *path: str) -> float:
    """A number of a record; NaN, which asv shows as n/a, where it plays no part or no GPU is there.

    A case that ended badly has no numbers to show: that is a failed benchmark.
    """
    if record["status"] != "ok":
        raise RuntimeError(f"{record['status']}: {record['reason']}")
    value: Any = record
    for key in path:
        value = None if value is None else value[key]
    return math.nan if value is None else value
