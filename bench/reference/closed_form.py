"""The optimum of a problem that knows it: the reference that needs no solver."""

from __future__ import annotations

import time

from torch import Tensor

from bench.reference.cache import Reference, make_reference
from bench.reference.solution import Solution, in_double, open_loop_cost
from jfbcore.held_out import COUNT, held_out_states
from jfbcore.problems import Problem


def knows_optimum(problem: Problem) -> bool:
    """Whether `problem` has a formula for its optimal controls."""
    return type(problem).optimal_controls is not Problem.optimal_controls


def solve(problem: Problem, states: Tensor) -> list[Solution]:
    """The problem's own optimal controls from `states` (batch, n), scored by the rollout.

    Raises ValueError for a problem that does not know its optimum.
    """
    problem, states = in_double(problem), states.detach().double().cpu()
    begin = time.perf_counter()
    controls = problem.optimal_controls(states)
    if controls is None:
        raise ValueError(
            f"`--method` closed-form is for problems that know their optimum, got {problem.name}; "
            "use ipopt"
        )
    costs = open_loop_cost(problem, states, controls).tolist()
    seconds = (time.perf_counter() - begin) / len(costs)
    return [
        Solution(
            cost=cost,
            objective=cost,
            controls=control,
            status="closed form",
            solved=True,
            seconds=seconds,
        )
        for cost, control in zip(costs, controls, strict=True)
    ]


def reference_of(problem: Problem, states: int = COUNT) -> Reference:
    """The reference on the first held-out states."""
    found = solve(problem, held_out_states(in_double(problem), states))
    return make_reference(problem, "closed-form", found)
