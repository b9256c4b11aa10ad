"""One training step of each quick case: asv's view of `bench.measure`.

Every quantity but the step's own time is measured once per commit, case after case, by
`setup_cache`, and read from there: the costs of importing torch and of building a case are paid
once. Cases that a gradient cannot serve are n/a.
"""

from __future__ import annotations

import math
from typing import Any

from bench.presets import quick

CASES = {case.id: case for case in quick()}
_TIMEOUT = 600.0


class Step:
    """The time of a whole step, sampled by asv itself."""

    params = (list(CASES),)
    param_names = ("case",)
    timeout = _TIMEOUT
    version = "1"
    warmup_time = 0.5
    rounds = 2
    min_run_count = 3

    def setup(self, case: str) -> None:
        from bench.build import Unsupported
        from bench.measure import Step as Body

        try:
            self.step = Body(CASES[case])
        except Unsupported as unsupported:
            raise NotImplementedError(unsupported.reason) from unsupported

    def time_step(self, case: str) -> None:
        self.step()


class Quantities:
    """Parts of the step's time, exact byte counts, iterations and residuals; smaller is better."""

    params = (list(CASES),)
    param_names = ("case",)
    timeout = _TIMEOUT
    version = "1"

    def setup_cache(self) -> dict[str, dict]:
        from bench.records import empty_record
        from bench.worker import fill

        found = {}
        for name, case in CASES.items():
            record = empty_record(case, 0)
            fill(record, case, 0)
            found[name] = record
        return found

    setup_cache.timeout = _TIMEOUT  # type: ignore[attr-defined]

    def setup(self, records: dict[str, dict], case: str) -> None:
        if records[case]["status"] == "unsupported":
            raise NotImplementedError(records[case]["reason"])

    def track_forward_seconds(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "forward_seconds")

    def track_backward_seconds(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "backward_seconds")

    def track_peak_live_bytes(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "peak_live_tensor_bytes")

    def track_saved_bytes(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "saved_tensor_bytes")

    def track_iterations(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "iterations", "mean")

    def track_residual(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "residual", "max")

    def track_cuda_peak_bytes(self, records: dict[str, dict], case: str) -> float:
        return _read(records[case], "cuda", "max_allocated_bytes")

    track_forward_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_backward_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_peak_live_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_saved_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_iterations.unit = "iterations"  # type: ignore[attr-defined]
    track_residual.unit = "|grad H|"  # type: ignore[attr-defined]
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
