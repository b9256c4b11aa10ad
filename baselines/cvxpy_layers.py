"""Conic differentiation of argmax H through CVXPYLayers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.conic_backends import ConicBackend, Diffcp
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import BoundMap
from jfbcore.problems import Consumption, Hamiltonian, Liquidation, Problem, Quadrotor
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

    It solves the same problem as every other estimator, to the accuracy of the conic solver in
    float64; the answer is cast to the problem's dtype and device and carries its residual like any
    other; the solve counts as one iteration. Serves problems whose H is concave in u and has a
    formulation here. `backend`: what solves and differentiates, `Diffcp` or `Moreau`. The `solver`
    of the policy only lends its tolerance, to judge the residual.

    Measured on quadrotors with controls of 0.1 to 2 in root mean square, one thread, CPU time: the
    greatest relative error of a sample's control against Lambert's W, the relative error of the
    gradient against `Implicit(DenseLU())`, milliseconds forward and backward of one decision.

    | agents, batch | Clarabel               | SCS                    | Moreau                |
    |---------------|------------------------|------------------------|-----------------------|
    | 1, 50         | 6e-6, 1e-6, 54 + 7     | 7e-11, 1e-7, 60 + 7    | 2e-5, 8e-6, 7 + 2     |
    | 6, 33         | 2e-5, 5e-6, 48 + 5     | 1e-10, 1e-7, 56 + 5    | 2e-5, 6e-6, 10 + 2    |
    | 20, 10        | 1e-5, 3e-6, 22 + 3     | 4e-11, 1e-7, 23 + 3    | 9e-6, 3e-6, 8 + 2     |
    | 100, 8        | 2e-5, 6e-6, 40 + 4     | 1e-10, 7e-8, 38 + 3    | 3e-5, 1e-5, 20 + 5    |

    The interior-point methods stop where the control is off by the square root of the gap; asked
    for 1e-12 they do not come closer. On consumption, Moreau's gradient is good to 1e-6 for goods
    whose excess is near the nominal one, 5e-5 at three times that and 6e-2 at ten times, where the
    control itself is right: its backward solve is regularised. The others stay below 1e-5 there.
    """

    #: settings of a case that play no part here
    unused: ClassVar[tuple[str, ...]] = ("map", "step_size", "solver", "iterations")

    backend: ConicBackend = field(default_factory=Diffcp)
    _formulations: weakref.WeakKeyDictionary[Problem, _Formulation] = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.backend, ConicBackend):
            raise TypeError(f"`backend` must be a ConicBackend object, got {self.backend!r}")

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why it cannot serve `problem`."""
        if (reason := self.backend.missing()) is not None:
            return reason
        if isinstance(problem, (Quadrotor, Liquidation)):
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
        if problem.name == "rotor-quadrotor":
            return "the dynamics of rotor-quadrotor are not affine in the control: H has no program"
        return f"no convex formulation of {problem.name} is registered"

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The optimum of the conic program, attached to z and p by the layer."""
        hamiltonian = fixed_point_map.hamiltonian
        formulation = self._formulation(hamiltonian)
        device = self.backend.device(initial.device)
        parameters = [x.to(device) for x in formulation.parameters(hamiltonian)]
        # A sample that is not finite has no optimum; SCS would raise for the whole batch.
        defined = torch.stack([x.isfinite().view(len(x), -1).all(1) for x in parameters]).all(0)
        parameters = [torch.where(_column(defined, x), x, 0.0) for x in parameters]
        answer = self.backend.solve(formulation.layer, parameters)
        answer = torch.where(_column(defined, answer), answer, math.nan)
        answer = answer.to(initial.device, initial.dtype)
        control = hamiltonian.project(formulation.control(hamiltonian, answer))
        with torch.no_grad():
            residual = fixed_point_map.residual(control)
        return solver.solution(control, residual, 1)

    def _formulation(self, hamiltonian: Hamiltonian) -> _Formulation:
        problem = hamiltonian.problem
        known = self._formulations.get(problem)
        if known is None:
            build = _BUILDERS[type(problem)]
            # The layer owns its cp.Problem: sharing one between layers is not safe.
            known = self._formulations.setdefault(problem, build(problem, self.backend))
        return known


def _quadrotor(problem: Any, backend: ConicBackend) -> _Formulation:
    """min c.u + exp(|u|^2/2N), in units that keep the numbers of order one.

    The control is in units of sqrt(N): without them the linear systems of 100 agents are so badly
    scaled that Moreau's gradient was off by 5e-3, whatever its tolerances. The cost is divided by
    e^k = sqrt(1 + N|c|^2), a bound on exp(|u|^2/2N) at the optimum: without it every conic solver
    breaks down where that is above about 1e3. k does not move the optimum, so that its derivative
    is dropped.
    """
    import cvxpy as cp

    unit = math.sqrt(problem.n_agents)
    control, shift = cp.Variable(problem.control_dim), cp.Parameter()
    slope = cp.Parameter(problem.control_dim)
    cost = slope @ control + cp.exp(cp.sum_squares(control) / 2 - shift)
    layer = backend.layer(cp.Problem(cp.Minimize(cost)), [slope, shift], control)

    def parameters(hamiltonian: Hamiltonian) -> tuple[Tensor, ...]:
        scaled = unit * _coefficient(hamiltonian)
        k = 0.5 * torch.log1p(scaled.detach().square().sum(1))
        return torch.exp(-k).unsqueeze(1) * scaled, k

    return _Formulation(layer, parameters, lambda h, answer: unit * answer)


def _consumption(problem: Any, backend: ConicBackend) -> _Formulation:
    import cvxpy as cp

    # In units of the nominal excess and its marginal utility, so that the conic solver sees
    # numbers of order one whatever the number of goods.
    unit, gamma = problem.nominal_excess, problem.gamma
    excess = cp.Variable(problem.control_dim)
    price = cp.Parameter(problem.control_dim)
    utility = cp.sum(cp.power(excess, 1.0 - gamma)) / (1.0 - gamma)
    bounds = [excess >= problem.min_excess / unit, excess <= problem.max_excess / unit]
    program = cp.Problem(cp.Minimize(price @ excess - utility), bounds)
    layer = backend.layer(program, [price], excess)

    def parameters(hamiltonian: Any) -> tuple[Tensor, ...]:
        return (_coefficient(hamiltonian) / hamiltonian.discount * unit**gamma,)

    def control(hamiltonian: Any, answer: Tensor) -> Tensor:
        control: Tensor = hamiltonian.habits + unit * answer
        return control

    return _Formulation(layer, parameters, control)


def _liquidation(problem: Any, backend: ConicBackend) -> _Formulation:
    """min c.u + u' E u over selling rates, a quadratic program without constraints."""
    import cvxpy as cp

    rate, slope = cp.Variable(problem.control_dim), cp.Parameter(problem.control_dim)
    own = (1.0 - problem.cross_impact) * problem.impact
    shared = problem.cross_impact * problem.impact
    cost = slope @ rate + own * cp.sum_squares(rate) + shared * cp.square(cp.sum(rate))
    layer = backend.layer(cp.Problem(cp.Minimize(cost)), [slope], rate)
    return _Formulation(layer, lambda h: (_coefficient(h),), lambda h, answer: answer)


_BUILDERS = {Quadrotor: _quadrotor, Consumption: _consumption, Liquidation: _liquidation}


def _coefficient(hamiltonian: Hamiltonian) -> Tensor:
    """c in float64, (batch, m)."""
    coefficient = hamiltonian.control_coefficient()
    assert coefficient is not None
    return coefficient.double()


def _column(mask: Tensor, like: Tensor) -> Tensor:
    """`mask`, (batch,), in the shape that broadcasts against `like`, (batch, …)."""
    return mask.view(-1, *(1,) * (like.dim() - 1))
