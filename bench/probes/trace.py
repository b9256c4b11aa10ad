"""A training run that is measured as it goes: gradients, contraction and curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baselines import Unrolled
from bench import training
from bench.build import build, exact_estimator
from bench.case import Case
from bench.diagnostics import angle, policy_gradient
from bench.probes.probe import Hooks, Probe, Row
from bench.trace import along_rollout, gradients
from jfbcore.held_out import held_out_states
from jfbcore.policy import HamiltonianPolicy
from jfbcore.train import Training


@dataclass(frozen=True, kw_only=True)
class Trace(Probe):
    """A row every `interval` of `case.train_steps` steps of `recipe`, the first before any step.

    `states` initial states stand for the expectation, in minibatches of `minibatch`. The map is
    measured at every `map_every`-th time step. A run that diverges, or parameters at which the map
    cannot be measured, leave a row with the reason and nulls.
    """

    interval: int = 25
    states: int = 8
    minibatch: int = 4
    map_every: int = 1
    recipe: str = "recommended"

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        policy = build(case, seed)
        assert isinstance(policy, HamiltonianPolicy)
        states = held_out_states(policy.problem, self.states)
        exact = exact_estimator(case)
        rows: list[Row] = []

        def look(step: int) -> None:
            row: Row = {"step": step, **gradients(policy, exact, states, self.minibatch)}
            if self.recipe == "released":  # whose inner iteration is a truncated one
                row |= _against_applied(policy, states[: self.minibatch])
            try:
                row |= along_rollout(policy, states, every=self.map_every)
            except torch.linalg.LinAlgError as error:  # a decomposition of what is not finite
                row["reason"] = f"the map cannot be measured: {str(error).splitlines()[0]}"
            rows.append(row)

        def watch(training: Training) -> None:
            if training.step % self.interval == 0:
                look(training.step)

        look(0)
        # The trace scores the policy itself: the training's own evaluations are only in the way.
        config = training.config(case, seed, self.recipe, evaluations=1, held_out=1)
        result = training.prepare(case, seed, config, policy=policy, callback=watch).run()
        if result.reason is not None:
            rows.append({"step": result.steps, "reason": f"{result.status}: {result.reason}"})
        tail = {"tolerance": policy.solver.tolerance, "rejected_steps": len(result.interventions)}
        record["rows"] = [row | tail for row in rows]


def _against_applied(policy: HamiltonianPolicy, states: Tensor) -> Row:
    """JFB against the derivative of the iteration as it is run, one minibatch.

    Where an inner solve stops far from the fixed point the implicit gradient takes the control
    applied for one, which it is not; unrolling differentiates the iteration that led to it.
    """
    jfb = policy_gradient(policy, states)
    applied = policy_gradient(policy, states, Unrolled())
    ratio = (jfb.norm() / applied.norm()).item()
    return {"angle_applied": angle(jfb, applied), "norm_ratio_applied": ratio}
