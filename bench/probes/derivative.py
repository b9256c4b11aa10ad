"""How wrong the derivative is after K unrolled iterations, or k tracked ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines import DenseLU, Implicit, Unrolled
from bench import training
from bench.build import build
from bench.case import Case
from bench.diagnostics import policy_gradient
from bench.probes.probe import Hooks, Probe, explain_column
from jfbcore.held_out import held_out_states
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import MAPS
from jfbcore.policy import HamiltonianPolicy
from jfbcore.solvers import Newton, Picard, Solver

#: inner residual of the true gradient, in units of the problem's gradient scale
_TIGHT = 1e-11


@dataclass(frozen=True, kw_only=True)
class Derivative(Probe):
    """Relative error of the policy gradient against the implicit one, before and after training.

    `unrolled` runs exactly K iterations from the cold start and differentiates them; `jfb` tracks
    k applications from the converged control; K and k are each of `counts`. The truth is implicit
    differentiation, dense, at Newton's control: it knows nothing of the map. The policy trains on
    the scaled map whatever the map measured, so that all curves of a problem belong to the same two
    policies. `states`: initial states, every one of which is unrolled.
    """

    counts: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20, 35, 60)
    maps: tuple[str, ...] = ("scaled", "plain")
    states: int = 4

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        assert case.dtype == "float64", "differences near rounding are the point here"
        case = replace(case, map="scaled")
        policy = build(case, seed)
        assert isinstance(policy, HamiltonianPolicy)
        problem = policy.problem
        x = held_out_states(problem, self.states)
        newton = Newton(tolerance=_TIGHT * problem.gradient_scale, max_iterations=200)
        record["rows"] = []
        for at in ("initial", "trained"):
            if at == "trained":
                config = training.config(case, seed, "recommended", evaluations=1, held_out=1)
                training.prepare(case, seed, config, policy=policy).run()
            true = gradient_on("scaled", policy, x, Implicit(DenseLU()), newton)
            for name in self.maps:
                for count in self.counts:
                    exactly = Picard(tolerance=None, max_iterations=count)
                    found = {
                        "unrolled": gradient_on(name, policy, x, Unrolled(), exactly),
                        "jfb": gradient_on(name, policy, x, JFB(count), newton),
                    }
                    for gradient, value in found.items():
                        error = ((value - true).norm() / true.norm()).item()
                        record["rows"].append({"policy": at, "map": name, "gradient": gradient,
                                               "count": count, "error": error})  # fmt: skip
        explain_column(record, "error", "the gradient is not finite")


def gradient_on(
    map_name: str,
    policy: HamiltonianPolicy,
    states: Tensor,
    estimator: GradientEstimator,
    solver: Solver,
    warm_start: bool = False,
) -> Tensor:
    """d(mean cost)/d(theta) on another map, as one vector; one NaN where the rollout leaves the
    finite numbers."""
    measured = policy.with_gradient(estimator, fixed_point_map=MAPS[map_name], solver=solver)
    try:
        return policy_gradient(measured, states, warm_start=warm_start)
    except torch.linalg.LinAlgError:  # a decomposition of what is not finite
        return torch.full_like(states[0, :1], torch.nan)
