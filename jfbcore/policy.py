"""Policies: what turns a time and a state into a control."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jfbcore import _validate
from jfbcore.checks import check_problem
from jfbcore.extras.description import one_line
from jfbcore.extras.places import places_in
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import FixedPointMap
from jfbcore.problems.base import Hamiltonian, Problem, Time
from jfbcore.solvers.base import Solution, Solver
from jfbcore.value_network import ValueNetwork


@dataclass(frozen=True)
class Decision:
    """A control (batch, m) with a graph, and where it came from.

    `solution` and `hamiltonian` are None for a policy that solves no inner problem.
    """

    control: Tensor
    solution: Solution | None = None
    hamiltonian: Hamiltonian | None = None


class Policy(nn.Module, abc.ABC):
    """A feedback law u(t, z) with trainable parameters."""

    problem: Problem

    @abc.abstractmethod
    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        """Decide at time `t` in states `z` (batch, n).

        `warm_start` (batch, m), detached: where an inner iteration may start instead of at the
        problem's initial control.
        """

    def assigned(self, initial_states: Tensor) -> Tensor:
        """`initial_states` (batch, n), where there are places with agents numbered by place; every
        rollout begins with it."""
        places = places_in(self)
        return initial_states if places is None else places(initial_states)

    def supports_compiled_rollout(self) -> str | None:
        """None, or why no compiled rollout can run this policy: what in it asks the host."""
        return None

    def __repr__(self) -> str:
        return one_line(self)


class HamiltonianPolicy(Policy):
    """u(t, z) = argmax_u H(t, z, grad phi(t, z), u), from `solver` on `fixed_point_map`.

    Raises ValueError with the reason where the problem's formulas do not fit each other (see
    `jfbcore.checks`), or where gradient or solver cannot serve the problem.
    """

    def __init__(
        self,
        problem: Problem,
        value_network: ValueNetwork | SharedValueNetwork,
        *,
        fixed_point_map: FixedPointMap,
        solver: Solver,
        gradient: GradientEstimator,
    ) -> None:
        super().__init__()
        network = "ValueNetwork.for_problem(problem)"
        _validate.instance("problem", problem, Problem, "Quadrotor(n_agents=6)")
        _validate.instance("value_network", value_network, nn.Module, network)
        _validate.instance("fixed_point_map", fixed_point_map, FixedPointMap, "ScaledMap()")
        _validate.instance("solver", solver, Solver, "Picard(tolerance=1e-4)")
        _validate.instance("gradient", gradient, GradientEstimator, "JFB()")
        check_problem(problem)
        reason = gradient.supports(problem) or solver.supports(problem)
        if reason := reason or gradient.supports_solver(solver):
            raise ValueError(reason)
        self.problem, self.value_network = problem, value_network
        self.fixed_point_map, self.solver, self.gradient = fixed_point_map, solver, gradient

    def with_gradient(
        self,
        gradient: GradientEstimator | None = None,
        *,
        fixed_point_map: FixedPointMap | None = None,
        solver: Solver | None = None,
    ) -> HamiltonianPolicy:
        """A new policy that shares this one's network and differs in what is given.

        This policy stays as it is. Raises ValueError as the constructor does.
        """
        other = HamiltonianPolicy(
            self.problem,
            self.value_network,
            fixed_point_map=fixed_point_map or self.fixed_point_map,
            solver=solver or self.solver,
            gradient=gradient or self.gradient,
        )
        other.training = self.training
        return other

    def supports_compiled_rollout(self) -> str | None:
        """None, or why no compiled rollout can run this policy."""
        if self.gradient.recompute:
            return "a compiled rollout keeps the network's layers; `recompute` needs the eager one"
        reason = self.solver.supports_repeat() or self.gradient.supports_pull_back(self.solver)
        if reason is None and self.problem.device.type != "cpu":
            reason = self.gradient.supports_capture(self.solver)
        return reason

    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        """The control that maximises H at time `t` and states `z` (batch, n)."""
        p = self.value_network.costate(t, z)
        hamiltonian = self.problem.hamiltonian(t, z, p)
        if warm_start is None:
            initial = self.problem.initial_control(t, z)
        else:
            # The admissible set may have moved with the state since.
            with torch.no_grad():
                initial = hamiltonian.project(warm_start)
        bound = self.fixed_point_map.bind(hamiltonian)
        solution = self.gradient.attach(bound, self.solver, initial)
        return Decision(solution.control, solution, hamiltonian)
