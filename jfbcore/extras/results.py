"""What a training run leaves: a curve of evaluations, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from jfbcore.extras.guard import Intervention

if TYPE_CHECKING:
    from jfbcore.rollout import Rollout
    from jfbcore.train import Training


@dataclass(frozen=True)
class Evaluation:
    """A point of the curve: `loss` on the last minibatch, the costs on the held-out states.

    `inner`: iterations and residuals of the inner solves on the held-out states, as
    `InnerStatistics.summary` gives them; None for a policy without an inner problem.
    """

    step: int
    seconds: float
    loss: float
    running_cost: float
    terminal_cost: float
    evaluation_cost: float
    costs: tuple[float, ...] = field(repr=False, default=())
    inner: dict[str, dict[str, float]] | None = field(repr=False, default=None)

    @classmethod
    def of(cls, flown: Rollout, step: int, seconds: float, loss: float) -> Evaluation:
        """The point that a rollout from the held-out states makes, with means in float64."""
        cost = flown.cost.double()
        parts = (flown.running_cost.double(), flown.terminal_cost.double(), cost)
        running, terminal, total = (part.mean().item() for part in parts)
        costs, inner = tuple(cost.tolist()), flown.inner.summary()
        return cls(step, seconds, loss, running, terminal, total, costs, inner)


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves. `status` is "ok" or "diverged", with the reason."""

    curve: list[Evaluation]
    steps: int
    seconds: float
    step_seconds: list[float]
    interventions: list[Intervention]
    status: str
    reason: str | None

    @classmethod
    def of(cls, training: Training) -> TrainingResult:
        """The result of a run that has ended, and been evaluated."""
        guard, clock = training.guard, training.clock
        reason = guard.interventions[-1].reason if guard.exhausted else None
        if reason is None and not math.isfinite(training.curve[-1].evaluation_cost):
            reason = "the final evaluation cost is not finite"
        status = "ok" if reason is None else "diverged"
        return cls(
            training.curve, training.step, clock.seconds, clock.step_seconds,
            guard.interventions, status, reason,
        )  # fmt: skip

    @property
    def median_step_seconds(self) -> float | None:
        """Median seconds of a training step; None for a run without one."""
        return median(self.step_seconds) if self.step_seconds else None


def headline(training: Training) -> str:
    """A line on where a run stands."""
    line = f"loss {training.loss:.4g}, held-out {training.curve[-1].evaluation_cost:.4g}"
    rejected = len(training.guard.interventions)
    return f"{line}, {rejected} rejected" if rejected else line
