"""The best known cost of a problem, as its reference on file has it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from bench.build import Unsupported, build_problem
from bench.case import Case
from bench.gap import gaps
from bench.probes.probe import Hooks, Probe, explain_column


@dataclass(frozen=True, kw_only=True)
class Optimum(Probe):
    """One row: the mean over the reference's held-out states, its standard error, its label."""

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        found = gaps(build_problem(case))
        if found.reference is None or not found.reference.solved:
            raise Unsupported(found.reason or "the reference has no state that was solved")
        costs = found.reference.solved
        several = len(costs) > 1
        error = statistics.stdev(costs) / len(costs) ** 0.5 if several else None
        record["rows"] = [{
            "label": found.reference.label, "states": len(costs),
            "cost": statistics.fmean(costs), "standard_error": error,
        }]  # fmt: skip
        explain_column(record, "standard_error", "one state alone")
