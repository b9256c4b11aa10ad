"""How far a case's control and gradient are from the exact ones, in float64.

The exact control is Lambert's W where there is such a formula, elsewhere Newton's, started at the
control itself so that both are in the basin of one maximiser. The exact gradient is implicit
differentiation there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.build import build, exact_estimator
from bench.case import Case
from bench.diagnostics import difference, policy_gradient, watching
from bench.plugins import shown
from bench.registry import method
from jfbcore.extras.clock import crossed
from jfbcore.maps import BoundMap, ScaledMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems import Hamiltonian, Problem
from jfbcore.problems.base import Time
from jfbcore.rollout import rollout
from jfbcore.solvers import Newton, Solution, Solver

if TYPE_CHECKING:
    from bench.measure import Step
    from jfbcore.train import Training

#: states of the minibatch that errors are taken on: enough for a figure, cheap beside a step
STATES = 4
#: times of a training run at which the bias is taken, its beginning and its end included
POINTS = 4
#: residual of an exact control, in units of the problem's gradient scale
_EXACT = 1e-11
#: relative residual of the linear systems of an exact gradient
_LINEAR = 1e-14


@dataclass(frozen=True, kw_only=True)
class Polished(Solver):
    """`first`, and then Newton's method from its answer to `tolerance`.

    The answer is that of `first` where Newton's residual is no smaller.
    """

    first: Solver

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        found = self.first.solve(fixed_point_map, initial)
        control = exact_control(fixed_point_map.hamiltonian, found.control, self.tolerance)
        return self.solution(control, fixed_point_map.residual(control), found.iterations)


@torch.no_grad()
def exact_control(hamiltonian: Hamiltonian, near: Tensor, tolerance: float | None) -> Tensor:
    """The maximiser (batch, m) in whose basin `near` is, by formula or to the residual asked for.

    Where Newton's method gets no closer, `near` itself.
    """
    try:
        formula = hamiltonian.closed_form()
    except ModuleNotFoundError:  # Lambert's W is scipy's
        formula = None
    if formula is not None:
        return formula
    bound = ScaledMap().bind(hamiltonian)
    newton = Newton(tolerance=tolerance).solve(bound, near)
    closer = newton.residual <= bound.residual(near)
    return torch.where(closer.unsqueeze(1), newton.control, near)


def in_float64(case: Case, policy: Policy) -> HamiltonianPolicy | None:
    """The policy of `case` with the parameters of `policy`, in float64 on the CPU.

    None for a policy that maximises no Hamiltonian.
    """
    if not isinstance(policy, HamiltonianPolicy):
        return None
    twin = build(replace(case, dtype="float64", device="cpu", compile=False, capture=False), 0)
    assert isinstance(twin, HamiltonianPolicy)
    twin.load_state_dict(policy.state_dict())
    return twin


def gradient_error(step: Step) -> float | None:
    """|g - g*| / |g*| of the minibatch gradient: everything that a method and its tolerance cost.

    g is the method's own at the control its solver finds, g* the exact one at the exact control.
    None for a step that rolls out no Hamiltonian's maximiser.
    """
    twin = in_float64(step.case, step.policy) if step.rolls_out else None
    if twin is None:
        return None
    x = step.states[:STATES].double().cpu()
    polished = Polished(first=twin.solver, tolerance=_EXACT * twin.problem.gradient_scale)
    exact = twin.with_gradient(exact_estimator(step.case, _LINEAR), solver=polished)
    found = difference(policy_gradient(twin, x), policy_gradient(exact, x))
    return None if found is None else found["relative"]


@torch.no_grad()
def control_error(step: Step) -> Mapping[str, float] | None:
    """{mean, max} over time steps and samples of |u - u*| / |u*| along a rollout of `policy`.

    u is the control handed on, in the case's own precision, u* the exact one at the same state and
    costate. Absolute where u* is 0.
    """
    twin = in_float64(step.case, step.policy)
    if twin is None:
        return None
    errors: list[Tensor] = []

    def look(t: Time, z: Tensor, decision: Decision) -> None:
        assert decision.hamiltonian is not None
        errors.append(_distance(twin.problem, decision.hamiltonian, decision.control))

    with watching(step.policy, look):
        rollout(step.policy, step.states[:STATES])
    found = torch.cat(errors)
    return {"mean": found.mean().item(), "max": found.max().item()}


def _distance(problem: Problem, hamiltonian: Hamiltonian, control: Tensor) -> Tensor:
    """(batch,), `problem` being the same in float64."""
    t, z, p = hamiltonian.inputs
    t = t.double().cpu() if isinstance(t, Tensor) else t
    u = control.double().cpu()
    h = problem.hamiltonian(t, z.double().cpu(), p.double().cpu())
    exact = exact_control(h, u, _EXACT * problem.gradient_scale)
    error, size = (torch.linalg.vector_norm(v, dim=1) for v in (u - exact, exact))
    return torch.where(size > 0, error / size, error)


@dataclass
class BiasTrace:
    """A hook of a training run: the bias of its gradient at `POINTS` times, in float64.

    A row has the training `step`, the `relative` bias |g - g*| / |g*| and the `cosine` of g and g*,
    where g* differentiates the same controls exactly: what is left is the estimator's own doing.
    Rounding alone is 1e-13 or less. Off the clock, as evaluations are.
    """

    case: Case
    states: Tensor
    rows: list[dict[str, float]] = field(default_factory=list)
    _before: float = 0.0

    @staticmethod
    def reason_against(case: Case) -> str | None:
        """None, or why the training of `case` has no bias to follow."""
        if not case.inner_problem:
            return f"{shown(case.gradient)} solves no inner problem"
        supervision = method(case.gradient).supervision
        if supervision is not None and supervision.share == 1:
            return f"{shown(case.gradient)} differentiates no rollout"
        if case.device != "cpu":
            return "taken of CPU cases"
        return None

    def __call__(self, training: Training) -> None:
        now = training.fraction_done()
        if crossed(self._before, now, POINTS - 1):
            self.take(training.policy, training.step)
        self._before = now

    def take(self, policy: Policy, step: int) -> None:
        """Add a row for the policy as it is, unless there is no gradient to compare."""
        twin = in_float64(self.case, policy)
        if twin is None or any(row["step"] == step for row in self.rows):
            return
        x = self.states[:STATES].double().cpu()
        exact = policy_gradient(twin, x, exact_estimator(self.case, _LINEAR))
        if (found := difference(policy_gradient(twin, x), exact)) is not None:
            self.rows.append({"step": step, **found})
