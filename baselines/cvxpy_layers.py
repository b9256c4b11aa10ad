"""Conic differentiation of argmax H through CVXPYLayers."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.gradients import GradientEstimator
from jfbcore.maps import BoundMap
from jfbcore.problems import Consumption, Hamiltonian, Problem, Quadrotor
from jfbcore.solvers import Solution, Solver


@dataclass(frozen=True)
class _Formulation:
    """A convex program with parameters, and the tensors that fill them for one Hamiltonian."""

    layer: Any
    parameters: Callable[[Hamiltonian], tuple[Tensor, ...]]
    control: Callable[[Hamiltonian, Tensor], Tensor]


@dataclass(frozen=True)
class CvxpyLayer(GradientEstimator):
    """argmax H as a disciplined convex program, parameterised by the exact c = (df/du)^T p.

    It solves the same problem as every other estimator, to the accuracy of an interior-point
    method in float64 on the CPU, one sample at a time; the answer is cast to the problem's dtype
    and device and carries its residual like any other; the solve counts as one iteration. Serves
    problems whose H is concave in u and has a formulation here. `jobs`: threads that share a
    batch. `gap`: the interior-point method's tolerances. The `solver` of the policy only lends its
    tolerance, to judge the residual.
    """

    jobs: int = 1
    gap: float = 1e-10
    _formulations: weakref.WeakKeyDictionary[Problem, _Formulation] = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _validate.positive_int("jobs", self.jobs)
        _validate.positive("gap", self.gap)

    def supports(self, problem: Problem) -> str | None:
        for module in ("cvxpy", "cvxpylayers"):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed; pip install jfbbench[baselines]"
        if isinstance(problem, Quadrotor):
            return None
        if isinstance(problem, Consumption):
            if problem.eta == 1.0:
                return None
            return (
                f"the consumption Hamiltonian is not concave in u at eta = {problem.eta:g}; "
                "it is at eta = 1"
            )
        if problem.name == "bicycle":
            return "the bicycle Hamiltonian is not concave in the steering angle"
        return f"no convex formulation of {problem.name} is registered"

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        hamiltonian = fixed_point_map.hamiltonian
        formulation = self._formulation(hamiltonian)
        parameters = [x.to("cpu", torch.float64) for x in formulation.parameters(hamiltonian)]
        arguments: dict[str, Any] = {"n_jobs_forward": self.jobs}
        if torch.is_grad_enabled() and any(x.requires_grad for x in parameters):
            # solve_only_batch would hand this on to the conic solver, which does not know it.
            arguments["n_jobs_backward"] = self.jobs
        # Clarabel's last iterate comes back whatever its status; the residual tells its worth.
        (answer,) = formulation.layer(*parameters, solver_args=arguments)
        answer = answer.to(initial.device, initial.dtype)
        control = hamiltonian.project(formulation.control(hamiltonian, answer))
        with torch.no_grad():
            residual = fixed_point_map.residual(control)
        return solver.solution(control, residual, 1)

    def _formulation(self, hamiltonian: Hamiltonian) -> _Formulation:
        problem = hamiltonian.problem
        known = self._formulations.get(problem)
        if known is None:
            build = _quadrotor if isinstance(problem, Quadrotor) else _consumption
            # The layer owns its cp.Problem: sharing one between layers is not safe.
            known = self._formulations.setdefault(problem, build(problem, self.gap))
        return known


def _solver_arguments(gap: float) -> dict[str, Any]:
    return {
        "solve_method": "Clarabel",
        "tol_gap_abs": gap,
        "tol_gap_rel": gap,
        "tol_feas": gap,
    }


def _quadrotor(problem: Any, gap: float) -> _Formulation:
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer as Layer

    u, c = cp.Variable(problem.control_dim), cp.Parameter(problem.control_dim)
    cost = c @ u + cp.exp(cp.sum_squares(u) / (2 * problem.n_agents))
    program = cp.Problem(cp.Minimize(cost))
    layer = Layer(program, [c], [u], solver_args=_solver_arguments(gap))
    return _Formulation(layer, lambda h: (_coefficient(h),), lambda h, answer: answer)


def _consumption(problem: Any, gap: float) -> _Formulation:
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer as Layer

    # In units of the nominal excess and its marginal utility, so that the conic solver sees
    # numbers of order one whatever the number of goods.
    unit, gamma = problem.nominal_excess, problem.gamma
    excess = cp.Variable(problem.control_dim)
    price = cp.Parameter(problem.control_dim)
    utility = cp.sum(cp.power(excess, 1.0 - gamma)) / (1.0 - gamma)
    bounds = [excess >= problem.min_excess / unit, excess <= problem.max_excess / unit]
    program = cp.Problem(cp.Minimize(price @ excess - utility), bounds)
    layer = Layer(program, [price], [excess], solver_args=_solver_arguments(gap))

    def parameters(hamiltonian: Any) -> tuple[Tensor, ...]:
        return (_coefficient(hamiltonian) / hamiltonian.discount * unit**gamma,)

    def control(hamiltonian: Any, answer: Tensor) -> Tensor:
        return hamiltonian.habits + unit * answer

    return _Formulation(layer, parameters, control)


def _coefficient(hamiltonian: Hamiltonian) -> Tensor:
    coefficient = hamiltonian.control_coefficient()
    assert coefficient is not None
    return coefficient
