"""The memory of a case at full size, from exact counts of small versions of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.case import Case
from bench.probes.probe import Hooks, Probe, explain_column


@dataclass(frozen=True, kw_only=True)
class Prediction(Probe):
    """Fills `predicted`, at the case's own iterations; and a row for each of `memory`, a device's
    bytes: the K from which the case does not fit, null where it always does.
    """

    memory: tuple[float, ...] = ()
    record_fields: ClassVar[tuple[str, ...]] = ("predicted", "rows")

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        from bench.predict import fit_on_cpu, predicted_by

        model = fit_on_cpu(case)
        record["predicted"] = predicted_by(model, case)
        size = (case.batch_size, case.n_steps)
        crossovers = [model.crossover(*size, memory) for memory in self.memory]
        record["rows"] = [
            {
                "memory": memory,
                "crossover": None if math.isinf(count) else count,
                "bytes_at_100": model.predict(*size, 100),
                "bytes_at_500": model.predict(*size, 500),
                "model_error": model.error,
            }
            for memory, count in zip(self.memory, crossovers, strict=True)
        ]
        explain_column(record, "crossover", "it fits at any number of iterations")
