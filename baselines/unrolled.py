"""Automatic differentiation through every inner iteration, plain and checkpointed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import BoundMap
from jfbcore.solvers import IterativeSolver, Solution, Solver
from jfbcore.solvers.iterate import checkpointed, take, track

#: iterations up to which one function holds all of them forwards and backwards
LONGEST_PULL_BACK = 50


def needs_iterations(name: str, solver: Solver) -> str | None:
    """None, or the reason why gradient `name` has no iteration of `solver` to differentiate."""
    if isinstance(solver, IterativeSolver):
        return None
    return (
        f"{name} differentiates the solver's iterations and {type(solver).__name__} has none; "
        "use solver picard, anderson or newton"
    )


@dataclass(frozen=True)
class Unrolled(GradientEstimator):
    """All K steps of the solver tracked: the derivative of the truncated iteration, D held fixed.

    With a tolerance one more step is tracked after the test passes: an iteration that lands in
    few steps (Newton's, or a Newton-like D) is right about the control before it is right about its
    derivative. Memory O(K). Prefer it only where K is small or as a reference: it converges to
    the implicit gradient at the rate T contracts; with Newton, whose Hessian is held fixed too, the
    last step alone has the derivative of the point before it; with Anderson, through the
    least-squares problems of its extrapolation.
    """

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The solution with the graph of every iteration."""
        if not torch.is_grad_enabled():
            return solver.solve(fixed_point_map, initial)
        assert isinstance(solver, IterativeSolver)
        state = solver.init(fixed_point_map, initial.detach())
        return solver.result(track(solver, fixed_point_map, state, solver.max_iterations))

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this gradient cannot work with `solver`."""
        return needs_iterations("unrolled", solver)

    tracks_from_start: ClassVar[bool] = True

    def supports_pull_back(self, solver: Solver) -> str | None:
        """None, or the reason why the derivative needs the graph of the solve."""
        if solver.tolerance is not None or solver.max_iterations > LONGEST_PULL_BACK:
            return (
                f"pulling back through every iteration needs a fixed number of at most "
                f"{LONGEST_PULL_BACK}; use the eager rollout"
            )
        return solver.supports_repeat()

    def kept(self, initial: Tensor, solved: Tensor) -> Tensor:
        """Where the solve starts, (batch, m): the derivative follows it from there."""
        return initial

    def reattach(self, fixed_point_map: BoundMap, solver: Solver, kept: Tensor) -> Tensor:
        """All iterations again from `kept` (batch, m), with a graph."""
        assert isinstance(solver, IterativeSolver)
        state = solver.init_untested(fixed_point_map, kept)
        control: Tensor = take(solver, fixed_point_map, state, solver.max_iterations).control
        return control


@dataclass(frozen=True)
class UnrolledCheckpoint(GradientEstimator):
    """`Unrolled` with torch.utils.checkpoint over segments of the iteration.

    `segment`: iterations per checkpoint; None takes the square root of the solver's
    iteration limit, which makes memory O(sqrt(K)) at the price of one more forward pass.
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None:
            _validate.positive_int("segment", self.segment)

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The solution with the graph of every iteration, recomputed by segments in backward."""
        if not torch.is_grad_enabled():
            return solver.solve(fixed_point_map, initial)
        assert isinstance(solver, IterativeSolver)
        state = solver.init(fixed_point_map, initial.detach())
        limit = solver.max_iterations
        run = checkpointed(solver, fixed_point_map, state, limit, self.length(limit))
        return solver.result(run)

    def length(self, max_iterations: int) -> int:
        """Iterations per checkpoint."""
        return self.segment or math.isqrt(max_iterations - 1) + 1

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this gradient cannot work with `solver`."""
        return needs_iterations("unrolled-checkpoint", solver)

    def supports_pull_back(self, solver: Solver) -> str | None:
        """The reason why no compiled rollout runs it."""
        return (
            "unrolled-checkpoint chooses what of autograd's graph is kept, and a compiled rollout "
            f"has no such graph; use unrolled with an exact number of at most {LONGEST_PULL_BACK} "
            "iterations, or the eager rollout"
        )
