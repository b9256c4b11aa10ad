"""What JFB's theory assumes, taken at a policy: its gradients, and its map along a rollout."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.diagnostics import (
    angle,
    contraction_rate,
    curvature_bounds,
    map_parameter_singular_values,
    minibatch_gradients,
    relative_variance,
)
from jfbcore.jfb import GradientEstimator
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Time
from jfbcore.rollout import hjb_residual, rollout

#: a residual of more than this times the tolerance has missed it: below, rounding may have held it
MISSED = 1.1
#: controls up to which dT/d(theta) is assembled: a backward pass of the network per control
_LARGEST_ASSEMBLED = 24


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
        "norm_ratio": (mean_own.norm() / mean_true.norm()).item(),
        "true_gradient_norm": mean_true.norm().item(),
        "relative_variance": relative_variance(own),
    }


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


@contextlib.contextmanager
def watching(policy: Policy, look: Callable[[Time, Tensor, Decision], None]) -> Iterator[None]:
    """Within, `look(t, z, decision)` is called at every decision of `policy`, as rollouts take it.

    The decisions of a `CompiledRollout` are inside compiled code and not seen.
    """

    def hook(_module: Policy, arguments: tuple, decision: Decision) -> None:
        t, z, *_ = arguments
        look(t, z, decision)

    handle = policy.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
