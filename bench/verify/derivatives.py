"""How wrong the derivative is after K unrolled iterations, or k tracked ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from baselines import DenseLU, Implicit, Unrolled
from bench.build import build
from bench.case import Case
from bench.diagnostics import policy_gradient
from bench.recipes import training_config
from jfbcore.held_out import held_out_states
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import MAPS
from jfbcore.policy import HamiltonianPolicy
from jfbcore.solvers import Newton, Picard, Solver
from jfbcore.train import Training

Row = dict[str, Any]

#: inner residual of the true gradient, in units of the problem's gradient scale
_TIGHT = 1e-11


def derivative_rows(
    case: Case, maps: tuple[str, ...], counts: tuple[int, ...], states: int, seed: int
) -> list[Row]:
    """Relative error of the policy gradient against the implicit one, before and after training.

    `unrolled` runs exactly K iterations from the cold start and differentiates them; `jfb` tracks
    k applications from the converged control. The truth is implicit differentiation, dense, at
    Newton's control: it knows nothing of the map. The policy trains on the scaled map whatever
    the map measured, so that all curves of a problem belong to the same two policies.
    """
    assert case.dtype == "float64", "differences near rounding are the point here"
    policy = build(replace(case, map="scaled"), seed)
    assert isinstance(policy, HamiltonianPolicy)
    problem = policy.problem
    x = held_out_states(problem, states)
    rows: list[Row] = []
    for at in ("initial", "trained"):
        if at == "trained":
            config = replace(
                training_config(case, steps=case.train_steps, seed=seed), evaluations=1, held_out=1
            )
            Training(policy, config).run()
        newton = Newton(tolerance=_TIGHT * problem.gradient_scale, max_iterations=200)
        true = _gradient(policy, x, newton, Implicit(DenseLU()), "scaled")
        head = {"problem": case.problem, "n_agents": case.n_agents, "policy": at, "seed": seed}
        for name in maps:
            for count in counts:
                exactly = Picard(tolerance=None, max_iterations=count)
                found = {
                    "unrolled": _gradient(policy, x, exactly, Unrolled(), name),
                    "jfb": _gradient(policy, x, newton, JFB(count), name),
                }
                for gradient, value in found.items():
                    error = ((value - true).norm() / true.norm()).item()
                    rows.append(head | {"map": name, "gradient": gradient, "count": count,
                                        "error": error})  # fmt: skip
    return rows


def _gradient(
    policy: HamiltonianPolicy, x: Tensor, solver: Solver, estimator: GradientEstimator, name: str
) -> Tensor:
    measured = policy.with_gradient(estimator, fixed_point_map=MAPS[name], solver=solver)
    try:
        return policy_gradient(measured, x)
    except torch.linalg.LinAlgError:  # the rollout left the finite numbers
        return torch.full_like(x[0, :1], torch.nan)
