"""Exact bytes of a training step against the number of inner iterations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bench.case import Case
from bench.probes.probe import Hooks, Probe


@dataclass(frozen=True, kw_only=True)
class Memory(Probe):
    """A row for each of `iterations`, run exactly: bytes saved for backward and most alive."""

    iterations: tuple[int, ...] = (5, 50, 100, 500)

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        from bench.measure import Step, measure_memory

        record["rows"] = []
        for count in self.iterations:
            step = Step(replace(case, tolerance=None, max_iterations=count), seed)
            found = measure_memory(step)
            record["rows"].append({
                "K": count,
                "saved_bytes": found["saved_tensor_bytes"],
                "peak_bytes": found["peak_live_tensor_bytes"],
            })  # fmt: skip
