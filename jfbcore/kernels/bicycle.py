"""The bicycle's Hamiltonian, written by hand beside `Bicycle.dynamics` and `running_cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore.hamiltonian import Hamiltonian

if TYPE_CHECKING:
    from jfbcore._time import Time
    from jfbcore.problems.bicycle import Bicycle


class BicycleHamiltonian(Hamiltonian):
    """H = -sum(kappa tan(delta) + p_v a) - |u|^2/2 + terms without u; separable over controls."""

    constrained = True
    # The Hessian of L is the identity; below 1 so that steering does not overshoot its maximiser.
    plain_step_size = 0.5

    #: smallest curvature Newton-type steps divide by: a step of at most 20 times the gradient
    _CURVATURE_FLOOR = 0.05

    problem: Bicycle

    def __init__(self, problem: Bicycle, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        _, _, p_heading, self._p_speed = problem.agents(p).unbind(-1)
        #: kappa = p_psi v / l, (batch, N)
        self.kappa = p_heading * problem.agents(z)[..., 3] / problem.wheelbase

    def control_part(self, u: Tensor) -> Tensor:
        """H but for the terms without a control: (batch, m) -> (batch,)."""
        steering, acceleration = self.problem.controls(u)
        along = self.kappa * steering.tan() + self._p_speed * acceleration
        effort: Tensor = torch.linalg.vecdot(u, u)
        return -along.sum(1) - 0.5 * effort

    def constant_part(self) -> Tensor:
        """The terms of H without a control, (batch,)."""
        no_control = self.problem.initial_control(self._t, self._z)
        drift = self.problem.dynamics(self._t, self._z, no_control)
        cost = self.problem.running_cost(self._t, self._z, no_control)
        along: Tensor = torch.linalg.vecdot(self._p, drift)
        return -along - cost

    def grad(self, u: Tensor) -> Tensor:
        """Gradient of H in the control: (batch, m) -> (batch, m)."""
        steering, _ = self.problem.controls(u)
        pull = torch.stack((self.kappa / steering.cos().square(), self._p_speed), -1)
        return -u - pull.flatten(1)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """Hessian of H in the control, at `u`, times `v`, (batch, m)."""
        return -self._negative_curvature(u, self.kappa) * v

    def curvature_scaling(self, u: Tensor) -> Tensor:
        """Positive diagonal scaling of the gradient, (batch, m), without a graph."""
        curvature = self._negative_curvature(u.detach(), self.kappa.detach())
        return curvature.abs().clamp_min(self._CURVATURE_FLOOR).reciprocal()

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        """(-Hessian)^(-1) r, (batch, m): the Hessian is diagonal."""
        return self.curvature_scaling(u) * r

    def project(self, u: Tensor) -> Tensor:
        """The steering angles clamped to their bound, (batch, m)."""
        steering, acceleration = self.problem.controls(u)
        bound = self.problem.max_steering
        return torch.stack((steering.clamp(-bound, bound), acceleration), -1).flatten(1)

    def interior(self, u: Tensor) -> Tensor:
        """Mask (batch, m), True where the bounds do not act."""
        steering, acceleration = self.problem.controls(u)
        inside = steering.abs() < self.problem.max_steering
        return torch.stack((inside, torch.ones_like(acceleration, dtype=torch.bool)), -1).flatten(1)

    def _negative_curvature(self, u: Tensor, kappa: Tensor) -> Tensor:
        """-(diagonal of the Hessian): 1 + 2 kappa sec^2 tan for steering, 1 for acceleration."""
        steering, acceleration = self.problem.controls(u)
        tangent = steering.tan()
        bend = 1.0 + 2.0 * kappa * tangent * (1.0 + tangent.square())
        return torch.stack((bend, torch.ones_like(acceleration)), -1).flatten(1)
