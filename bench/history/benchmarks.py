"""One training step of each quick case: asv's view of `bench.measure`.

Every quantity but the step's own time is measured once per commit, case after case, by
`setup_cache`, and read from there: the costs of importing torch and of building a case are paid
once. Cases that a gradient cannot serve are n/a.
"""

from __future__ import annotations

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

    def track_forward_seconds(self, records: dict[str, dict], case: str) -> float | None:
        return records[case]["forward_seconds"]

    def track_backward_seconds(self, records: dict[str, dict], case: str) -> float | None:
        return records[case]["backward_seconds"]

    def track_peak_live_bytes(self, records: dict[str, dict], case: str) -> int | None:
        return records[case]["peak_live_tensor_bytes"]

    def track_saved_bytes(self, records: dict[str, dict], case: str) -> int | None:
        return records[case]["saved_tensor_bytes"]

    def track_iterations(self, records: dict[str, dict], case: str) -> float | None:
        return _part(records[case], "iterations", "mean")

    def track_residual(self, records: dict[str, dict], case: str) -> float | None:
        return _part(records[case], "residual", "max")

    def track_cuda_peak_bytes(self, records: dict[str, dict], case: str) -> int | None:
        return _part(records[case], "cuda", "max_allocated_bytes")

    track_forward_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_backward_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_peak_live_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_saved_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_iterations.unit = "iterations"  # type: ignore[attr-defined]
    track_residual.unit = "|grad H|"  # type: ignore[attr-defined]
    track_cuda_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


def _part(record: dict, name: str, key: str):
    """A part of a record, None (n/a) where it plays no part or no GPU is there."""
    return None if record[name] is None else record[name][key]
