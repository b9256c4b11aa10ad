"""Exact bytes of a training step against the number of inner iterations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bench.case import Case
from bench.probes.probe import Hooks, Probe


@dataclass(frozen=True, kw_only=True)
class Memory(Probe):
    """A row for each of `iterations`, run exactly: bytes saved for backward and most alive.

    Of a case that trains one more, at its own tolerance: with the parameters that `jfb` has after
    those steps, the same for every gradient.
    """

    iterations: tuple[int, ...] = (5, 50, 100, 500)

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        import torch

        from bench import training
        from bench.measure import Step, measure_memory

        record["rows"] = []

        def take(step: Step, count: int | None = None) -> None:
            found = measure_memory(step)
            record["rows"].append({
                "K": found["iterations"]["max"] if count is None else count,
                "stop": "tolerance" if count is None else "count",
                "saved_bytes": found["saved_tensor_bytes"],
                "peak_bytes": found["peak_live_tensor_bytes"],
            })  # fmt: skip

        for count in self.iterations:
            take(Step(replace(case, tolerance=None, max_iterations=count), seed), count)
        if case.train_steps:
            jfb = replace(case, gradient="jfb")
            config = training.config(jfb, seed, "recommended", evaluations=1, held_out=1)
            trained = training.prepare(jfb, seed, config)
            trained.run()
            step = Step(case, seed)
            # In their order: what wraps a policy puts its own name before its parameters' names.
            with torch.no_grad():
                for own, found in zip(
                    step.policy.parameters(), trained.policy.parameters(), strict=True
                ):
                    own.copy_(found)
            take(step)
