"""Picard iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """u <- T(u). Converges wherever T contracts, at T's own rate; no memory beyond u."""

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
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
