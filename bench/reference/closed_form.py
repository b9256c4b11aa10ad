"""The optimum of a problem that knows it: the reference that needs no solver."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor

from bench.reference.cache import Reference, make_reference
from bench.reference.solution import Solution, Solver, in_double, open_loop_cost
from jfbcore.held_out import COUNT, held_out_states
from jfbcore.problems import Problem


def knows_optimum(problem: Problem) -> bool:
    """Whether `problem` has a formula for its optimal controls."""
    return type(problem).optimal_controls is not Problem.optimal_controls


class ClosedForm(Solver):
    """The problem's own optimal controls, scored by the rollout."""

    def supports(self, problem: Problem) -> str | None:
        """None, or that the problem does not know its optimum."""
        if knows_optimum(problem):
            return None
        return (
            f"`--method` closed-form is for problems that know their optimum, got {problem.name}; "
            "use ipopt"
        )

    def _solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None
    ) -> Iterator[Solution]:
        for state in states.split(1):
            begin = time.perf_counter()
            found = problem.optimal_controls(state)
            assert found is not None
            cost, seconds = (
                open_loop_cost(problem, state, found).item(),
                time.perf_counter() - begin,
            )
            yield Solution(
                cost=cost, objective=cost, controls=found[0], status="closed form", solved=True,
                seconds=seconds,
            )  # fmt: skip


def reference_of(problem: Problem, states: int = COUNT) -> Reference:
    """The reference on the first held-out states."""
    found = ClosedForm().solve(problem, held_out_states(in_double(problem), states))
    return make_reference(problem, "closed-form", found)
