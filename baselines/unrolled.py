"""Automatic differentiation through every inner iteration, plain and checkpointed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jfbcore import _validate
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import BoundMap
from jfbcore.solvers import Picard, Solution, Solver

#: tracked iterations up to which a compiled time step builds in a minute or two
_MOST_COMPILED = 50
#: iterations up to which one function holds all of them forwards and backwards
LONGEST_PULL_BACK = 50


def _needs_picard(name: str, solver: Solver) -> str | None:
    if isinstance(solver, Picard):
        return None
    return (
        f"{name} differentiates the Picard iteration itself and cannot track "
        f"{type(solver).__name__}; use solver picard"
    )


@dataclass(frozen=True)
class Unrolled(GradientEstimator):
    """All K applications of T tracked: the derivative of the truncated iteration, D held fixed.

    With a tolerance one more application is tracked after the test passes: an iteration that
    lands in few steps (a Newton-like D) is right about the control before it is right about its
    derivative. Memory O(K). Prefer it only where K is small or as a reference: it converges to
    the implicit gradient at the rate T contracts.
    """

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        if not torch.is_grad_enabled():
            return solver.solve(fixed_point_map, initial)
        u, iterations = initial.detach(), 0
        while True:
            last = iterations >= solver.max_iterations
            if last or (solver.tolerance is not None and iterations % solver.check_interval == 0):
                with torch.no_grad():
                    residual = fixed_point_map.residual(u)
                if last:
                    return solver.solution(u, residual, iterations)
                if solver.done(iterations, residual):
                    return solver.solution(fixed_point_map(u), residual, iterations + 1)
            u = fixed_point_map(u)
            iterations += 1

    def supports_solver(self, solver: Solver) -> str | None:
        return _needs_picard("unrolled", solver)

    def supports_compilation(self, solver: Solver) -> str | None:
        if solver.tolerance is not None:
            return (
                "a compiled graph cannot track a number of iterations that depends on the data; "
                "fix it (tolerance None)"
            )
        if solver.max_iterations > _MOST_COMPILED:
            return (
                f"a compiled graph of {solver.max_iterations} tracked iterations takes too long to "
                f"build; at most {_MOST_COMPILED}"
            )
        return None

    def tracked_in_graph(self, solver: Solver) -> int:
        return solver.max_iterations

    tracks_from_start: ClassVar[bool] = True

    def supports_pull_back(self, solver: Solver) -> str | None:
        if solver.tolerance is not None or solver.max_iterations > LONGEST_PULL_BACK:
            return (
                f"pulling back through every iteration needs a fixed number of at most "
                f"{LONGEST_PULL_BACK}; use the eager rollout"
            )
        return None

    def kept(self, initial: Tensor, solved: Tensor) -> Tensor:
        return initial

    def reattach(self, fixed_point_map: BoundMap, solver: Solver, kept: Tensor) -> Tensor:
        u = kept
        for _ in range(solver.max_iterations):
            u = fixed_point_map(u)
        return u


@dataclass(frozen=True)
class UnrolledCheckpoint(GradientEstimator):
    """`Unrolled` with torch.utils.checkpoint over segments of the iteration.

    `segment`: applications of T per checkpoint; None takes the square root of the solver's
    iteration limit, which makes memory O(sqrt(K)) at the price of one more forward pass.
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None:
            _validate.positive_int("segment", self.segment)

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        if not torch.is_grad_enabled():
            return solver.solve(fixed_point_map, initial)
        length = self.length(solver.max_iterations)
        u, iterations, stopped = initial.detach(), 0, False
        while not stopped and iterations < solver.max_iterations:
            segment = _Segment(
                fixed_point_map, solver, iterations, min(length, solver.max_iterations - iterations)
            )
            u = checkpoint(segment, u, use_reentrant=False, preserve_rng_state=False)
            iterations += segment.taken or 0
            stopped = segment.stopped
        with torch.no_grad():
            residual = fixed_point_map.residual(u)
        return solver.solution(u, residual, iterations)

    def length(self, max_iterations: int) -> int:
        """Applications of T per checkpoint."""
        return self.segment or math.isqrt(max_iterations - 1) + 1

    def supports_solver(self, solver: Solver) -> str | None:
        return _needs_picard("unrolled-checkpoint", solver)


class _Segment:
    """Up to `count` applications of T with the solver's stopping test after each.

    Called once forwards and once more when backward recomputes it; the second call repeats the
    number of applications of the first instead of testing again.
    """

    def __init__(self, fixed_point_map: BoundMap, solver: Solver, before: int, count: int) -> None:
        self._map, self._solver, self._before, self._count = fixed_point_map, solver, before, count
        self.taken: int | None = None
        self.stopped = False

    def __call__(self, u: Tensor) -> Tensor:
        if self.taken is not None:
            for _ in range(self.taken):
                u = self._map(u)
            return u
        for taken in range(1, self._count + 1):
            if self._solver.tolerance is not None:
                with torch.no_grad():
                    residual = self._map.residual(u)
                self.stopped = self._solver.done(self._before + taken - 1, residual)
            # As in `Unrolled`, one application is tracked after the test passes.
            u = self._map(u)
            if self.stopped:
                break
        self.taken = taken
        return u
