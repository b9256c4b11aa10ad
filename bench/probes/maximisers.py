"""Local maximisers of the bicycle's H: how often the inner iteration stops at one, at what cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import training
from bench.build import build
from bench.case import Case
from bench.diagnostics import MISSED, watching
from bench.probes.probe import Hooks, Probe, Row
from jfbcore.held_out import held_out_states
from jfbcore.maps import BoundMap
from jfbcore.policy import Decision, HamiltonianPolicy
from jfbcore.problems import Bicycle
from jfbcore.problems.base import Hamiltonian, Time
from jfbcore.rollout import rollout
from jfbcore.solvers import Newton, Solution, Solver

#: angles over the whole range of steering among which the best one is sought
_GRID = 2001
#: a maximiser whose H is lower by more than this, and by more than its residual explains (r^2/2
#: where -H has curvature 1), is another one
_LOSS = 1e-3


@dataclass(frozen=True, kw_only=True)
class GlobalSteering(Solver):
    """The global maximiser of a bicycle's H: the best of a grid of angles, then Newton's method.

    H is separable over controls and concave in the accelerations; steering is searched on
    `_GRID` angles, the bounds among them.
    """

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        hamiltonian = fixed_point_map.hamiltonian
        problem = hamiltonian.problem
        assert isinstance(problem, Bicycle)
        kappa, accelerations = _at_zero_control(hamiltonian, initial)
        best = best_steering(kappa, problem.max_steering)
        start = torch.stack((best, accelerations), -1).view_as(initial)
        newton = Newton(tolerance=self.tolerance, max_iterations=self.max_iterations)
        return newton.solve(fixed_point_map, start)


def _at_zero_control(hamiltonian: Hamiltonian, like: Tensor) -> tuple[Tensor, Tensor]:
    """kappa and the maximising accelerations, (batch, N) each: -grad H and grad H at u = 0."""
    gradient = hamiltonian.grad(torch.zeros_like(like)).unflatten(-1, (-1, 2))
    return -gradient[..., 0], gradient[..., 1]


def best_steering(kappa: Tensor, bound: float) -> Tensor:
    """argmax of -kappa tan(delta) - delta^2/2 over a grid of [-bound, bound], in kappa's shape."""
    angles = torch.linspace(-bound, bound, _GRID, dtype=kappa.dtype, device=kappa.device)
    return angles[_steering_part(kappa.unsqueeze(-1), angles).argmax(-1)]


def _steering_part(kappa: Tensor, steering: Tensor) -> Tensor:
    return -kappa * steering.tan() - 0.5 * steering.square()


@dataclass(frozen=True, kw_only=True)
class Maximisers(Probe):
    """A row per policy, start of the inner solve and time step: the share of steering angles that
    are maximisers in their neighbourhood only, and what that loses.

    The policy at its initial parameters, and after `case.train_steps` steps of `recipe`. "cold"
    starts every inner solve from zero control, "warm" from the control of the time step before.
    `cost` is the held-out cost as flown, `global_cost` that of the same costates with
    `GlobalSteering`. An angle that loses H because its iteration was cut short counts as
    unconverged, not as local. `states`: initial states.
    """

    states: int = 8
    recipe: str = "recommended"

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        policy = build(case, seed)
        assert isinstance(policy, HamiltonianPolicy)
        x = held_out_states(policy.problem, self.states)
        record["rows"] = []
        for at in ("initial", "trained"):
            if at == "trained":
                config = training.config(case, seed, self.recipe, evaluations=1, held_out=1)
                training.prepare(case, seed, config, policy=policy).run()
            best = _global_cost(policy, x)
            for start in ("cold", "warm"):
                measured, cost = _along_rollout(policy, x, warm=start == "warm")
                head = {"policy": at, "start": start, "cost": cost, "global_cost": best}
                record["rows"] += [head | row for row in measured]


@torch.no_grad()
def _global_cost(policy: HamiltonianPolicy, x: Tensor) -> float:
    own = policy.solver
    policy.solver = GlobalSteering(tolerance=own.tolerance, max_iterations=100)
    try:
        return rollout(policy, x).cost.double().mean().item()
    finally:
        policy.solver = own


@torch.no_grad()
def _along_rollout(policy: HamiltonianPolicy, x: Tensor, *, warm: bool) -> tuple[list[Row], float]:
    problem = policy.problem
    assert isinstance(problem, Bicycle)
    bound, rows = problem.max_steering, []

    def look(t: Time, z: Tensor, decision: Decision) -> None:
        u, hamiltonian, solution = decision.control, decision.hamiltonian, decision.solution
        assert hamiltonian is not None
        assert solution is not None
        kappa = _at_zero_control(hamiltonian, u)[0].double()
        found = u.view(*kappa.shape, 2)[..., 0].double()
        loss = _steering_part(kappa, best_steering(kappa, bound)) - _steering_part(kappa, found)
        residual = solution.residual.double().unsqueeze(-1)
        converged = residual <= MISSED * (solution.tolerance or 0.0)
        rows.append({
            "time": float(t), "kappa_max": kappa.abs().max().item(),
            "local_share": (converged & (loss > _LOSS + residual**2)).double().mean().item(),
            "unconverged_share": (~converged).double().mean().item(),
            "loss_max": loss.max().item(),
        })  # fmt: skip

    with watching(policy, look):
        cost = rollout(policy, x, warm_start=warm).cost.double().mean().item()
    return rows, cost
