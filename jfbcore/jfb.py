"""How the graph is re-attached to a control that was found without one.

A gradient estimator decides du*/d(theta, z) and nothing else. The Jacobian-free one lives here;
the ones it is compared with are in the `baselines` package.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.kernels.fused import pull_back
from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap
    from jfbcore.problems.base import Problem


class GradientEstimator(abc.ABC):
    """Solves max_u H and returns the control with a graph to (theta, z)."""

    #: whether `kept` is where the solve starts, because the derivative follows it from there
    tracks_from_start: ClassVar[bool] = False
    #: whether an eager rollout keeps a time step's state and solved control alone, and evaluates
    #: network, map and dynamics again on the way back, without another inner solve
    recompute: bool = False

    @abc.abstractmethod
    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The solution, its control (batch, m) attached to the Hamiltonian's z and p.

        Without grad mode the control comes back detached, at the solver's own cost.
        """

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why this estimator cannot serve `problem`."""
        return None

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this estimator cannot work with `solver`."""
        return None

    def supports_pull_back(self, solver: Solver) -> str | None:
        """None, or the reason why the derivative cannot be had without a graph to the solve."""
        return f"{type(self).__name__} needs the eager rollout"

    def supports_capture(self, solver: Solver) -> str | None:
        """None, or the reason why a rollout whose solver is not tested, as on a GPU, cannot have
        the derivative."""
        return None

    def solve(
        self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor
    ) -> tuple[Solution, Tensor]:
        """The solution without a graph, and what a rollout without a graph keeps of it."""
        solution = solver.solve(fixed_point_map, initial)
        return solution, self.kept(initial, solution.control)

    def repeat(
        self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept of `steps` untested steps of the solver, residual (batch,), control."""
        control, residual = solver.repeat(fixed_point_map, initial, steps)
        return self.kept(initial, control), residual, control

    def kept(self, initial: Tensor, solved: Tensor) -> Tensor:
        """What a rollout without a graph keeps for `reattach`: the solver's control (batch, m)."""
        return solved

    def reattach(self, fixed_point_map: BoundMap, solver: Solver, kept: Tensor) -> Tensor:
        """The control (batch, m) that is handed on, as a function of the Hamiltonian's z and p."""
        raise ValueError(self.supports_pull_back(solver))

    def pull_back(
        self,
        bind: Callable[[Tensor, Tensor], BoundMap],
        solver: Solver,
        z: Tensor,
        p: Tensor,
        kept: Tensor,
        control_bar: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(z_bar, p_bar), (batch, n) each: the derivative of the control, transposed, times
        `control_bar` (batch, m). `bind` makes the map for a state and a costate."""
        function = pull_back(lambda z, p: self.reattach(bind(z, p), solver, kept), z, p)
        z_bar, p_bar = function(control_bar)
        return z_bar, p_bar


@dataclass(frozen=True)
class JFB(GradientEstimator):
    """Jacobian-free backpropagation: `tracked` applications of T from the detached solution.

    `tracked` = 1 is JFB (Fung et al., AAAI 2022); more is the phantom or truncated-Neumann
    gradient. Biased, of order rate^tracked on a contraction; memory O(tracked), independent of
    the solver's iterations; with `recompute` n + m numbers a sample and time step, for one more
    evaluation of what a time step consists of but its inner solve.
    """

    tracked: int = 1
    recompute: bool = False

    def __post_init__(self) -> None:
        _validate.positive_int("tracked", self.tracked, "for the exact gradient use `Implicit()`")

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The solver's control with `tracked` applications of the map on top."""
        solution = solver.solve(fixed_point_map, initial)
        if not torch.is_grad_enabled():
            return solution
        return replace(solution, control=self.reattach(fixed_point_map, solver, solution.control))

    def supports_pull_back(self, solver: Solver) -> str | None:
        """None: the applications are repeated from the control that was kept."""
        return None

    def reattach(self, fixed_point_map: BoundMap, solver: Solver, kept: Tensor) -> Tensor:
        """`tracked` applications of the map to `kept` (batch, m), with a graph."""
        # The one place where a derivative is dropped: the solver's result comes without a graph,
        # so its dependence on its inputs, (I - dT/du)^-1 beyond the first `tracked` terms of its
        # series, is not there.
        control = kept
        for _ in range(self.tracked):
            control = fixed_point_map(control)
        return control
