"""Newton's method with backtracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Projected Newton ascent on H, each sample backtracking until H stops decreasing.

    Uses the problem's own inverse-Hessian product and ignores the map's scaling. Prefer it for
    ground truth and tight tolerances; quadratic near the maximiser.
    """

    max_iterations: int = 100
    max_halvings: int = 30

    def __post_init__(self) -> None:
        Solver.__post_init__(self)
        _validate.positive_int("max_halvings", self.max_halvings)

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        hamiltonian = fixed_point_map.hamiltonian
        u, iterations = initial, 0
        value = hamiltonian.control_part(u)
        while True:
            gradient = hamiltonian.grad(u)
            last = iterations >= self.max_iterations
            if last or (self.tolerance is not None and iterations % self.check_interval == 0):
                residual = fixed_point_map.residual(u, gradient)
                if last or self.done(iterations, residual):
                    return self.solution(u, residual, iterations)
            direction = hamiltonian.newton_direction(u, gradient)
            u, value = self._search(fixed_point_map, u, value, direction)
            iterations += 1

    def _search(
        self, fixed_point_map: BoundMap, u: Tensor, value: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        hamiltonian = fixed_point_map.hamiltonian
        # Close to the maximiser the gain drowns in rounding; a loss of that size is accepted.
        slack = 16 * torch.finfo(u.dtype).eps * value.abs().clamp_min(1.0)
        step = torch.ones_like(value)
        for _ in range(self.max_halvings):
            candidate = hamiltonian.project(u + step.unsqueeze(-1) * direction)
            found = hamiltonian.control_part(candidate)
            rejected = ~(found >= value - slack)
            if not bool(rejected.any()):
                break
            step = torch.where(rejected, 0.5 * step, step)
        rejected = ~(found >= value - slack)
        return (
            torch.where(rejected.unsqueeze(-1), u, candidate),
            torch.where(rejected, value, found),
        )
