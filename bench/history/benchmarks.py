"""One training step of each quick case: asv's view of `bench.measure`.

Times are sampled by asv itself, so that `asv continuous` has a spread to judge by. Every other
quantity is exact: it is measured once per commit, case after case, by `setup_cache` and read from
there. Cases that a gradient cannot serve are n/a.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.presets import quick

if TYPE_CHECKING:
    from bench.measure import Step

#: what is tracked. asv takes this list from the working tree and runs its n-th entry on every
#: commit: were it the commit's own, the n-th case of one could be another's.
IDS = (
    "quadrotor-n1-jfb-scaled-picard-max500-b16-t20-float32-cpu",
    "quadrotor-n1-implicit-scaled-picard-max500-b16-t20-float32-cpu",
    "quadrotor-n1-unrolled-scaled-picard-max500-b16-t20-float32-cpu",
    "quadrotor-n1-direct-b16-t20-float32-cpu",
    "quadrotor-n20-jfb-scaled-picard-max500-b16-t20-float32-cpu",
    "quadrotor-n20-implicit-scaled-picard-max500-b16-t20-float32-cpu",
    "quadrotor-n20-unrolled-scaled-picard-max500-b16-t20-float32-cpu",
    "quadrotor-n20-direct-b16-t20-float32-cpu",
    "bicycle-n1-jfb-scaled-picard-max500-b16-t20-float32-cpu",
    "bicycle-n1-implicit-scaled-picard-max500-b16-t20-float32-cpu",
    "bicycle-n1-unrolled-scaled-picard-max500-b16-t20-float32-cpu",
    "bicycle-n1-direct-b16-t20-float32-cpu",
    "consumption-n5-jfb-scaled-picard-max500-b16-t20-float32-cpu",
    "consumption-n5-implicit-scaled-picard-max500-b16-t20-float32-cpu",
    "consumption-n5-unrolled-scaled-picard-max500-b16-t20-float32-cpu",
    "consumption-n5-direct-b16-t20-float32-cpu",
    "quadrotor-n1-cvxpylayers-scaled-picard-max500-b4-t10-float32-cpu",
    "quadrotor-n1-torchdeq-scaled-picard-max500-b4-t10-float32-cpu",
    "quadrotor-n1-unrolled-checkpoint-scaled-picard-max500-b4-t10-float32-cpu",
    "quadrotor-n100-jfb-scaled-picard-max500-b50-t20-float32-cpu",
    "quadrotor-n6-jfb-scaled-picard-k50-b16-t20-float32-cpu",
    "quadrotor-n6-unrolled-scaled-picard-k50-b16-t20-float32-cpu",
)
#: the same cases by id as the commit at hand defines them, whose package is installed
CASES = {case.id: case for case in quick()}
_TIMEOUT = 600.0


@functools.lru_cache(maxsize=1)
def _step(case: str) -> Step:
    """The step of a case, built once per process: asv calls `setup` before every sample."""
    import torch

    from bench.build import Unsupported
    from bench.environment import default_threads
    from bench.measure import Step

    _known(case)
    torch.set_num_threads(default_threads())
    try:
        return Step(CASES[case])
    except Unsupported as unsupported:
        raise NotImplementedError(unsupported.reason) from unsupported


def _known(case: str) -> None:
    """NotImplementedError, which asv shows as n/a, where the commit at hand has no such case."""
    if case not in CASES:
        raise NotImplementedError(f"this commit has no case {case}")


class _BackwardClock:
    """A clock that runs only while a backward pass does.

    asv times whole calls; a backward pass needs the forward pass before it in the same call.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds

    def run(self, step: Step) -> None:
        step.clear()
        cost = step.forward()
        step.synchronise()
        began = time.perf_counter()
        cost.backward()
        step.synchronise()
        self.seconds += time.perf_counter() - began


_BACKWARD_CLOCK = _BackwardClock()


class Times:
    """Seconds of a whole step, of its forward pass and of its backward pass."""

    params = (list(IDS),)
    param_names = ("case",)
    timeout = _TIMEOUT
    version = "3"
    warmup_time = 0.2
    number = 1
    rounds = 2
    #: at least 5, at most 10 samples a round, in no more than 2 seconds where they suffice
    repeat = (5, 10, 2.0)

    def setup(self, case: str) -> None:
        self.step = _step(case)
        # Here and not in the timed call: dropping the last graph takes time too.
        self.step.clear()

    def time_step(self, case: str) -> None:
        self.step()

    def time_forward(self, case: str) -> None:
        self.step.forward()
        self.step.synchronise()

    def time_backward(self, case: str) -> None:
        _BACKWARD_CLOCK.run(self.step)

    time_backward.timer = _BACKWARD_CLOCK.read  # type: ignore[attr-defined]


class Quantities:
    """Exact byte counts, iterations and residuals; smaller is better."""

    params = (list(IDS),)
    param_names = ("case",)
    timeout = _TIMEOUT
    version = "2"

    def setup_cache(self) -> dict[str, dict]:
        from bench.records import empty_record
        from bench.worker import fill

        found = {}
        for name in filter(CASES.__contains__, IDS):
            case = CASES[name]
            found[name] = empty_record(case, 0)
            fill(found[name], replace(case, timed=False), 0)
        return found

    setup_cache.timeout = _TIMEOUT  # type: ignore[attr-defined]

    def setup(self, records: dict[str, dict], case: str) -> None:
        _known(case)
        if records[case]["status"] == "unsupported":
            raise NotImplementedError(records[case]["reason"])

    def track_peak_live_bytes(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "peak_live_tensor_bytes")

    def track_saved_bytes(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "saved_tensor_bytes")

    def track_iterations(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "iterations", "mean")

    def track_missed_tolerance(self, records: dict[str, dict], case: str) -> float:
        """The largest residual over the tolerance, 1 where that was reached.

        Below it the last iterate is anywhere: a residual that grows there is nothing lost. n/a
        where exactly K iterations were asked for, whose residual is one of rounding.
        """
        tolerance = CASES[case].tolerance
        if tolerance is None:
            return math.nan
        return max(_read(records[case], "residual", "max") / tolerance, 1.0)

    def track_cuda_peak_bytes(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "cuda", "max_allocated_bytes")

    track_peak_live_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_saved_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_iterations.unit = "iterations"  # type: ignore[attr-defined]
    track_missed_tolerance.unit = "residual / tolerance"  # type: ignore[attr-defined]
    track_cuda_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


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
