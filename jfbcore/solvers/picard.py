"""Picard iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap

#: applications of T in one trip of a compiled loop of fixed length, so that they fuse
_APPLICATIONS_PER_TRIP = 10


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """u <- T(u). Converges wherever T contracts, at T's own rate; no memory beyond u."""

    def supports_compilation(self) -> str | None:
        return None

    def supports_repeat(self) -> str | None:
        return None

    @torch.no_grad()
    def repeat(
        self, fixed_point_map: BoundMap, initial: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        u = initial
        for _ in range(times):
            u = fixed_point_map.step(u, fixed_point_map.hamiltonian.grad(u))
        return u, fixed_point_map.residual(u)

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        if torch.compiler.is_compiling():
            if self.tolerance is None:
                return self._repeat_in_graph(fixed_point_map, initial)
            return self._solve_in_graph(fixed_point_map, initial, self.tolerance)
        u = initial
        gradient_of = fixed_point_map.hamiltonian.grad
        if self.tolerance is None:
            for _ in range(self.max_iterations):
                u = fixed_point_map.step(u, gradient_of(u))
            return self.solution(u, fixed_point_map.residual(u), self.max_iterations)
        iterations = 0
        while True:
            gradient = gradient_of(u)
            last = iterations >= self.max_iterations
            if last or iterations % self.check_interval == 0:
                residual = fixed_point_map.residual(u, gradient)
                if last or self.done(iterations, residual):
                    return self.solution(u, residual, iterations)
            u = fixed_point_map.step(u, gradient)
            iterations += 1

    def _solve_in_graph(
        self, fixed_point_map: BoundMap, initial: Tensor, tolerance: float
    ) -> Solution:
        """The same loop as an operator of the compiled graph, which may not test on the host."""
        gradient_of = fixed_point_map.hamiltonian.grad

        def unfinished(iterations: Tensor, u: Tensor, residual: Tensor) -> Tensor:
            return (iterations < self.max_iterations) & (residual > tolerance).any()

        def iterate(
            iterations: Tensor, u: Tensor, residual: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            u = fixed_point_map.step(u, gradient_of(u))
            return iterations + 1, u, fixed_point_map.residual(u)

        start = (
            torch.zeros((), dtype=torch.int64, device=initial.device),
            initial.clone(),
            fixed_point_map.residual(initial),
        )
        iterations, u, residual = while_loop(unfinished, iterate, start)
        return self.solution(u, residual, iterations)

    def _repeat_in_graph(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """Exactly `max_iterations` applications, most of them in a loop of the compiled graph."""
        gradient_of = fixed_point_map.hamiltonian.grad
        trips, rest = divmod(self.max_iterations, _APPLICATIONS_PER_TRIP)

        def apply(u: Tensor, times: int) -> Tensor:
            for _ in range(times):
                u = fixed_point_map.step(u, gradient_of(u))
            return u

        u = apply(initial, rest)
        if trips == 1:
            u = apply(u, _APPLICATIONS_PER_TRIP)
        elif trips > 1:
            _, u = while_loop(
                lambda trip, u: trip < trips,
                lambda trip, u: (trip + 1, apply(u, _APPLICATIONS_PER_TRIP)),
                (torch.zeros((), dtype=torch.int64, device=u.device), u.clone()),
            )
        return self.solution(u, fixed_point_map.residual(u), self.max_iterations)
