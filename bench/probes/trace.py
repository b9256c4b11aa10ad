"""A training run that is measured as it goes: its gradients, and its map along a rollout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from baselines import Unrolled
from bench import training
from bench.build import build, exact_estimator
from bench.case import Case
from bench.diagnostics import (
    angle,
    contraction_rate,
    curvature_bounds,
    map_parameter_singular_values,
    minibatch_gradients,
    policy_gradient,
    relative_variance,
    watching,
)
from bench.probes.probe import Hooks, Probe, Row
from jfbcore.held_out import held_out_states
from jfbcore.jfb import GradientEstimator
from jfbcore.policy import Decision, HamiltonianPolicy
from jfbcore.problems.base import Time
from jfbcore.rollout import hjb_residual, rollout
from jfbcore.train import Training

#: controls up to which dT/d(theta) is assembled: a backward pass of the network per control
_LARGEST_ASSEMBLED = 24


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


def gradients(
    policy: HamiltonianPolicy, exact: GradientEstimator, states: Tensor, minibatch: int
) -> dict[str, float]:
    """What minibatch gradients are compared for; not a number where one is not finite.

    `exact`: the estimator whose gradient counts as true. `states` (batch, n): the large minibatch
    that stands for the expectation; minibatches are its rows in order.
    """
    own, true = (
        minibatch_gradients(policy, states, minibatch, estimator) for estimator in (None, exact)
    )
    angles = [angle(a, b) for a, b in zip(own, true, strict=True)]
    mean_own, mean_true = torch.stack(own).mean(0), torch.stack(true).mean(0)
    return {
        # Python's max would step over what is not a number.
        "angle_max": torch.tensor(angles, dtype=torch.float64).max().item(),
        "angle_mean": sum(angles) / len(angles),
        "angle_expectation": angle(mean_own, mean_true),
        "angle_expectation_high": _widest(own, true),
        "norm_ratio": (mean_own.norm() / mean_true.norm()).item(),
        "true_gradient_norm": mean_true.norm().item(),
        "relative_variance": relative_variance(own),
    }


def _widest(own: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Angle [degrees] between the expected gradients at the far end of its 95 % interval.

    Student's, by the jackknife over minibatches, which both gradients share: what they vary alike
    turns neither away from the other. NaN for one minibatch alone.
    """
    n = len(own)
    if n < 2:
        return math.nan
    sums = torch.stack(list(own)).sum(0), torch.stack(list(true)).sum(0)
    left = [angle(sums[0] - a, sums[1] - b) for a, b in zip(own, true, strict=True)]
    middle = sum(left) / n
    error = math.sqrt((n - 1) / n * sum((one - middle) ** 2 for one in left))
    return min(180.0, angle(*sums) + float(stats.t.ppf(0.975, n - 1)) * error)


def along_rollout(policy: HamiltonianPolicy, states: Tensor, *, every: int = 1) -> dict[str, float]:
    """What the map is along a rollout; torch.linalg.LinAlgError where it is not finite.

    Map, curvature and HJB residual at every `every`-th time step, the first included. The singular
    values of dT/d(theta) are those at the first state, NaN where that is too large.
    """
    smallest, largest = math.nan, math.nan
    if policy.problem.control_dim <= _LARGEST_ASSEMBLED:
        smallest, largest = map_parameter_singular_values(policy, 0.0, states[:1])
    rates, lowest, highest, hjb = [], [], [], []
    generator = torch.Generator().manual_seed(0)
    time_steps = itertools.count()

    def look(t: Time, z: Tensor, decision: Decision) -> None:
        if next(time_steps) % every == 0:
            assert decision.hamiltonian is not None
            bound = policy.fixed_point_map.bind(decision.hamiltonian)
            rates.append(contraction_rate(bound, decision.control, generator=generator))
            low, high = curvature_bounds(
                decision.hamiltonian, decision.control, generator=generator
            )
            lowest.append(low)
            highest.append(high)
            hjb.append(hjb_residual(policy, t, z, decision).abs())

    with watching(policy, look), torch.no_grad():
        flown = rollout(policy, states)
    rate = torch.stack(rates)
    return {
        "parameter_singular_min": smallest,
        "parameter_singular_max": largest,
        "rate_max": rate.max().item(),
        "rate_median": rate.median().item(),
        "contractive_fraction": (rate < 1.0).double().mean().item(),
        "curvature_min": torch.stack(lowest).min().item(),
        "curvature_max": torch.stack(highest).max().item(),
        "hjb_residual": torch.stack(hjb).mean().item(),
        "residual_max": torch.stack(flown.inner.residuals).max().item(),
        "cost": flown.cost.mean().item(),
    }
