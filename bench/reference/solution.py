"""What reference solvers have in common, and the one place where their controls are scored."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jfbcore.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The open-loop control found for one initial state.

    `cost` is what the rollout pays for `controls`, in float64; a solver never scores itself.
    `objective` is the solver's own figure for the same controls. `status` is the solver's word
    on how it stopped, and `solved` says whether the cost may serve as a reference. `starts` counts
    the starting points the best was chosen from. `kkt_residual`: how far the point is from the
    first-order conditions of the solver's own program, `lower_bound`: of the optimal cost; None
    where there is none.
    """

    cost: float = math.nan
    objective: float = math.nan
    #: (n_steps, m), float64 on the CPU; units of the problem's control
    controls: Tensor = field(default_factory=lambda: torch.empty(0))
    status: str
    solved: bool
    seconds: float = 0.0
    starts: int = 1
    kkt_residual: float | None = None
    lower_bound: float | None = None


class Solver(abc.ABC):
    """Finds an open-loop control for each of some initial states; its settings are its fields."""

    def supports(self, problem: Problem) -> str | None:
        """None, or why the solver is not for `problem`."""
        return None

    def solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None = None
    ) -> Iterator[Solution]:
        """The best control found from each of `states` (batch, n), one by one.

        `controls` (batch, n_steps, m): where all but the closed form start, in place of starts of
        their own. A state that could not be solved comes back with a status and `solved=False`.
        Raises ValueError with the reason for a problem that the solver does not support.
        """
        if (reason := self.supports(problem)) is not None:
            raise ValueError(reason)
        return self._solve_each(in_double(problem), states.detach().double().cpu(), controls)

    def solve(
        self,
        problem: Problem,
        states: Tensor,
        controls: Tensor | None = None,
        *,
        progress: Callable[[int], object] = lambda count: None,
    ) -> list[Solution]:
        """`solve_each` as a list; `progress` is called with 1 after each state."""
        solutions = []
        for solution in self.solve_each(problem, states, controls):
            solutions.append(solution)
            progress(1)
        return solutions

    @abc.abstractmethod
    def _solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None
    ) -> Iterator[Solution]: ...


def in_double(problem: Problem) -> Problem:
    """The same problem with initial states drawn in float64 on the CPU."""
    twin = copy.copy(problem)
    twin.dtype, twin.device = torch.float64, torch.device("cpu")
    return twin


def fly(
    problem: Problem, states: Tensor, control: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The left-endpoint Euler rollout from `states` (batch, n) under u_i = `control(i, z_i)`.

    States (batch, n_steps + 1, n), controls (batch, n_steps, m) and costs (batch,).
    """
    h, z, cost = problem.time_step, states, states.new_zeros(len(states))
    passed, taken = [z], []
    for i in range(problem.n_steps):
        u = control(i, z)
        cost = cost + h * problem.running_cost(i * h, z, u)
        z = z + h * problem.dynamics(i * h, z, u)
        passed.append(z)
        taken.append(u)
    return torch.stack(passed, 1), torch.stack(taken, 1), cost + problem.terminal_cost(z)


def open_loop_cost(problem: Problem, states: Tensor, controls: Tensor) -> Tensor:
    """Cost (batch,) of `controls` (batch, n_steps, m) from `states` (batch, n)."""
    return fly(problem, states, lambda i, z: controls[:, i])[2]
