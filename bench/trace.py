"""The diagnostics of JFB taken along a training run."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from jfbcore import _validate
from jfbcore.jfb import GradientEstimator
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Time
from jfbcore.rollout import hjb_residual, rollout

if TYPE_CHECKING:
    from jfbcore.train import Training

#: controls up to which dT/d(theta) is assembled: a backward pass of the network per control
_LARGEST_ASSEMBLED = 24


@dataclass
class Trace:
    """A callback for `jfbcore.train.Training`: a row of measurements every `interval` steps.

    `exact` is the estimator whose gradient counts as true. `states` (batch, n) is the large
    minibatch that stands for the expectation; `minibatches` minibatches of `minibatch_size` are
    drawn from its rows in order. `n_steps` None rolls out at the problem's own resolution. Map,
    curvature and HJB residual are measured at every `map_every`-th time step, the first included.
    """

    exact: GradientEstimator
    states: Tensor
    interval: int = 10
    minibatch_size: int = 8
    n_steps: int | None = None
    map_every: int = 1
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _validate.positive_int("interval", self.interval)
        _validate.positive_int("minibatch_size", self.minibatch_size)
        _validate.positive_int("map_every", self.map_every)

    def __call__(self, training: Training) -> None:
        if training.step % self.interval == 0:
            policy = training.policy
            assert isinstance(policy, HamiltonianPolicy)
            self.rows.append({"step": training.step, **self.measure(policy)})

    def measure(self, policy: HamiltonianPolicy) -> dict[str, float]:
        """All quantities at the policy's present parameters."""
        return {**self.measure_gradients(policy), **self.measure_map(policy)}

    def measure_gradients(self, policy: HamiltonianPolicy) -> dict[str, float]:
        """What minibatch gradients are compared for; not a number where one is not finite."""
        jfb, true = (
            minibatch_gradients(policy, self.states, self.minibatch_size, estimator, self.n_steps)
            for estimator in (None, self.exact)
        )
        angles = [angle(a, b) for a, b in zip(jfb, true, strict=True)]
        mean_jfb, mean_true = torch.stack(jfb).mean(0), torch.stack(true).mean(0)
        return {
            # Python's max would step over what is not a number.
            "angle_max": torch.tensor(angles, dtype=torch.float64).max().item(),
            "angle_mean": sum(angles) / len(angles),
            "angle_expectation": angle(mean_jfb, mean_true),
            "norm_ratio": (mean_jfb.norm() / mean_true.norm()).item(),
            "true_gradient_norm": mean_true.norm().item(),
            "relative_variance": relative_variance(jfb),
        }

    def measure_map(self, policy: HamiltonianPolicy) -> dict[str, float]:
        """What the map is along a rollout; torch.linalg.LinAlgError where it is not finite."""
        return {**self._parameter_sensitivity(policy), **self._along_rollout(policy)}

    def _parameter_sensitivity(self, policy: HamiltonianPolicy) -> dict[str, float]:
        """Singular values of dT/d(theta) at the first state, NaN where it is too large."""
        smallest, largest = math.nan, math.nan
        if policy.problem.control_dim <= _LARGEST_ASSEMBLED:
            smallest, largest = map_parameter_singular_values(policy, 0.0, self.states[:1])
        return {"parameter_singular_min": smallest, "parameter_singular_max": largest}

    @torch.no_grad()
    def _along_rollout(self, policy: HamiltonianPolicy) -> dict[str, float]:
        rates, lowest, highest, hjb = [], [], [], []
        generator = torch.Generator().manual_seed(0)
        time_steps = itertools.count()

        def look(t: Time, z: Tensor, decision: Decision) -> None:
            if next(time_steps) % self.map_every == 0:
                assert decision.hamiltonian is not None
                bound = policy.fixed_point_map.bind(decision.hamiltonian)
                rates.append(contraction_rate(bound, decision.control, generator=generator))
                low, high = curvature_bounds(
                    decision.hamiltonian, decision.control, generator=generator
                )
                lowest.append(low)
                highest.append(high)
                hjb.append(hjb_residual(policy, t, z, decision).abs())

        with watching(policy, look):
            flown = rollout(policy, self.states, n_steps=self.n_steps)
        rate = torch.stack(rates)
        return {
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
