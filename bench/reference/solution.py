"""What a reference solver returns, and the one place where its controls are scored."""

from __future__ import annotations

import copy
from dataclasses import dataclass

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

    cost: float
    objective: float
    #: (n_steps, m), float64 on the CPU; units of the problem's control
    controls: Tensor
    status: str
    solved: bool
    seconds: float
    starts: int = 1
    kkt_residual: float | None = None
    lower_bound: float | None = None


def in_double(problem: Problem) -> Problem:
    """The same problem with initial states drawn in float64 on the CPU."""
    twin = copy.copy(problem)
    twin.dtype, twin.device = torch.float64, torch.device("cpu")
    return twin


def open_loop_cost(problem: Problem, states: Tensor, controls: Tensor) -> Tensor:
    """Cost of the left-endpoint Euler rollout: (batch, n), (batch, n_steps, m) -> (batch,)."""
    h, z = problem.time_step, states
    cost = states.new_zeros(states.shape[0])
    for i in range(problem.n_steps):
        u = controls[:, i]
        cost = cost + h * problem.running_cost(i * h, z, u)
        z = z + h * problem.dynamics(i * h, z, u)
    return cost + problem.terminal_cost(z)
