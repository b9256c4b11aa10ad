"""The Hamiltonian of a liquidation, written by hand beside `Liquidation.running_cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore.hamiltonian import Hamiltonian

if TYPE_CHECKING:
    from jfbcore._time import Time
    from jfbcore.problems.liquidation import Liquidation


class LiquidationHamiltonian(Hamiltonian):
    """H = <p, u> - u' E u - risk, with E = own I + shared 1 1'; its maximiser is E^(-1) p / 2."""

    problem: Liquidation

    def __init__(self, problem: Liquidation, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        own = (1.0 - problem.cross_impact) * problem.impact
        shared = problem.n_assets * problem.cross_impact * problem.impact
        #: eigenvalues of E: of differences between assets (one asset has none), and of their sum
        self._sum = own + shared
        self._difference = own if problem.n_assets > 1 else self._sum
        self.plain_step_size = 0.25 / self._sum

    def control_part(self, u: Tensor) -> Tensor:
        return torch.linalg.vecdot(self._p - self.problem.impact_of(u), u)

    def constant_part(self) -> Tensor:
        return -self.problem.risk(self._z)

    def grad(self, u: Tensor) -> Tensor:
        return torch.sub(self._p, self.problem.impact_of(u), alpha=2.0)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return -2.0 * self.problem.impact_of(v)

    def curvature_scaling(self, u: Tensor) -> Tensor:
        # The inverse mean of the Hessian's two eigenvalues, the same everywhere.
        return u.new_full((u.shape[0], 1), 1.0 / (self._difference + self._sum))

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        mean = r.mean(1, keepdim=True)
        return (r - mean) * (0.5 / self._difference) + mean * (0.5 / self._sum)

    def control_coefficient(self) -> Tensor:
        return -self._p

    def closed_form(self) -> Tensor:
        return self.newton_direction(self._p, self._p.detach())
