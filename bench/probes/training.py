"""A training run: the held-out cost along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.case import Case
from bench.probes.probe import Hooks, Probe


@dataclass(frozen=True, kw_only=True)
class Train(Probe):
    """Fills the curve and what belongs to it, and the median seconds of a step.

    Trains for the case's seconds on the case's recipe, or for its steps on `recipe`. Scored on
    `held_out` states, `evaluations` times.
    """

    recipe: str = "recommended"
    held_out: int = 16
    evaluations: int = 10
    record_fields: ClassVar[tuple[str, ...]] = (
        *("curve", "final", "evaluation", "interventions", "step_seconds"),
    )

    def timed(self, case: Case) -> bool:
        return True

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        from bench import training

        config = training.config(
            case, seed, self.recipe, held_out=self.held_out, evaluations=self.evaluations
        )
        median = training.train(record, case, training.prepare(case, seed, config))
        record["step_seconds"] = {"median": median}
