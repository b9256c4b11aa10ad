"""The consumption problem's Hamiltonian by hand, beside `dynamics` and `running_cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore._time import Time, time_column
from jfbcore.hamiltonian import Hamiltonian

if TYPE_CHECKING:
    from jfbcore.problems.consumption import Consumption


class ConsumptionHamiltonian(Hamiltonian):
    """H = sum(p_x u - p_h u^eta) + exp(-delta t) sum w^(1-gamma)/(1-gamma) + ..., w = u - h.

    The gradient is e^(-delta t) w^(-gamma) - a(u) with the marginal price
    a(u) = -p_x + eta p_h u^(eta-1) of consuming one unit more. Where habits form each other's,
    p_h stands for A^T p_h in all of this: H is separable over goods whatever A is.
    """

    constrained = True

    problem: Consumption

    def __init__(self, problem: Consumption, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        self.discount = problem.discount(time_column(t))
        self.habits = _part(z, slice(1, None))
        self._p_wealth, self._habit_costates = _part(p, slice(1)), _part(p, slice(1, None))
        self._p_habits = problem.habit_costate(self._habit_costates)
        # Half the inverse curvature of the utility at the nominal excess.
        self.plain_step_size = 0.5 * problem.nominal_excess ** (problem.gamma + 1.0) / problem.gamma

    def control_part(self, u: Tensor) -> Tensor:
        """H but for the terms without a control: (batch, m) -> (batch,)."""
        problem = self.problem
        utility = self.discount * problem.utility(u - self.habits)
        return (self._p_wealth * u - self._p_habits * u.pow(problem.eta) + utility).sum(1)

    def constant_part(self) -> Tensor:
        """The terms of H without a control, (batch,)."""
        problem, wealth = self.problem, self._z[:, 0]
        decay: Tensor = torch.linalg.vecdot(self._habit_costates, problem.habit_decay(self.habits))
        return decay - problem.r * self._p_wealth.squeeze(1) * wealth

    def grad(self, u: Tensor) -> Tensor:
        """Gradient of H in the control: (batch, m) -> (batch, m)."""
        marginal = self.discount * (u - self.habits).pow(-self.problem.gamma)
        return marginal - self._price(u)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """Hessian of H in the control, at `u`, times `v`, (batch, m)."""
        return -self._negative_curvature(u) * v

    def curvature_scaling(self, u: Tensor) -> Tensor:
        """Positive diagonal scaling of the gradient, (batch, m), without a graph."""
        # Chosen so that u + D grad(u) = h + (a e^(delta t))^(-1/gamma), the excess at which the
        # marginal utility meets the present price: contracts at a rate of at most
        # (1 - eta)/gamma while p_x <= 0 <= p_h. Where the price is not positive any finite
        # excess is too small, and the price at the largest excess stands in for it.
        with torch.no_grad():
            problem = self.problem
            excess = u - self.habits
            marginal = self.discount * excess.pow(-problem.gamma)
            lowest = self.discount * problem.max_excess**-problem.gamma
            price = self._price(u).clamp_min(lowest)
            gap = (marginal - price) / price
            ratio = _expm1(gap.log1p() / problem.gamma) / gap
            # 0/0 at the fixed point itself; the limit is 1/gamma, to within |gap|.
            ratio = torch.where(gap.abs() < 1e-5, 1.0 / problem.gamma, ratio)
            return excess / price * ratio

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        """(-Hessian)^(-1) r, (batch, m), the curvature held above a tenth of the utility's."""
        with torch.no_grad():
            # The utility's own curvature bounds the total from below where H is not concave.
            own = self._utility_curvature(u)
            curvature = torch.maximum(self._negative_curvature(u), 0.1 * own)
        return r / curvature

    def project(self, u: Tensor) -> Tensor:
        """Consumption clamped to its bounds above habit, (batch, m)."""
        lowest, highest = self._bounds()
        return torch.clamp(u, lowest, highest)

    def interior(self, u: Tensor) -> Tensor:
        """Mask (batch, m), True where the bounds do not act."""
        lowest, highest = self._bounds()
        return (lowest < u) & (u < highest)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        # Bounds on u, not on u - h, which does not round back to itself. Large habits swallow a
        # small excess; the lower bound keeps it a few units in the last place above zero.
        visible = 4.0 * torch.finfo(self.habits.dtype).eps * self.habits.detach().abs()
        lowest = self.habits + visible.clamp_min(self.problem.min_excess)
        return lowest, self.habits + self.problem.max_excess

    def control_coefficient(self) -> Tensor | None:
        """c = (df/du)^T p, (batch, m), where the dynamics are affine in u; None elsewhere."""
        return self._p_habits - self._p_wealth if self.problem.eta == 1.0 else None

    def closed_form(self) -> Tensor | None:
        """h + (price e^(delta t))^(-1/gamma) where eta = 1, (batch, m); None elsewhere."""
        if self.problem.eta != 1.0:
            return None
        with torch.no_grad():
            lowest = self.discount * self.problem.max_excess**-self.problem.gamma
            price = (self._p_habits - self._p_wealth).clamp_min(lowest)
            excess = (price / self.discount).pow(-1.0 / self.problem.gamma)
            return self.project(self.habits + excess)

    def _price(self, u: Tensor) -> Tensor:
        eta = self.problem.eta
        if eta == 1.0:
            return self._p_habits - self._p_wealth
        return eta * self._p_habits * u.pow(eta - 1.0) - self._p_wealth

    def _utility_curvature(self, u: Tensor) -> Tensor:
        gamma = self.problem.gamma
        return gamma * self.discount * (u - self.habits).pow(-gamma - 1.0)

    def _negative_curvature(self, u: Tensor) -> Tensor:
        eta = self.problem.eta
        curvature = self._utility_curvature(u)
        if eta == 1.0:
            return curvature
        return curvature + eta * (eta - 1.0) * self._p_habits * u.pow(eta - 2.0)


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 to rounding in compiled code, too, whose own expm1 subtracts."""
    half = torch.tanh(0.5 * x)
    return torch.where(x.abs() < 0.5, 2.0 * half / (1.0 - half), x.exp() - 1.0)


def _part(x: Tensor, columns: slice) -> Tensor:
    # A loop inside a compiled graph takes no two views of one tensor.
    return x[:, columns].clone() if torch.compiler.is_compiling() else x[:, columns]
