"""The rotor quadrotor's Hamiltonian, written by hand beside `RotorQuadrotor.dynamics`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore.hamiltonian import Hamiltonian

if TYPE_CHECKING:
    from jfbcore._time import Time
    from jfbcore.problems.rotor_quadrotor import RotorQuadrotor

STATES_PER_AGENT = 12
#: smallest curvature that steps divide by, in units of the effort's
_CURVATURE_FLOOR = 0.1


@functools.cache
def curvature_constants(speed_range: float) -> tuple[float, float]:
    """c_2 and c_1: the largest |(w^2)''| and |w''| of w = 1 + s tanh(u / s) over all u.

    With q = tanh(u / s), w'' = -2 q (1 - q^2) / s and (w^2)'' = 2 (1 - q^2)(1 - 3 q^2 - 2 q / s):
    polynomials on [-1, 1], evaluated on a grid that misses their peaks by less than 1e-6.
    """
    q = torch.linspace(-1.0, 1.0, 4001, dtype=torch.float64)
    inside = 1.0 - q.square()
    bend = 2.0 * q * inside / speed_range
    squared = 2.0 * inside * (1.0 - 3.0 * q.square()) - 2.0 * bend
    return squared.abs().max().item(), bend.abs().max().item()


class RotorQuadrotorHamiltonian(Hamiltonian):
    """H = -sum_i (a_i w_i^2 + e_i w_i) - (effort |u|^2 + supply sum over agents (sum_i u_i)^2) / 2N
    + terms without u, where w_i = 1 + s tanh(u_i / s)."""

    problem: RotorQuadrotor

    def __init__(self, problem: RotorQuadrotor, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        agents, costates = problem.agents(z), problem.agents(p)
        self._air = direction, across = problem.air(agents)
        pull = costates[..., 6:9]
        lift = (0.25 * problem.g) * torch.linalg.vecdot(direction, pull)
        drag = (-0.25 * problem.rotor_drag) * torch.linalg.vecdot(across, pull)
        yaw, pitch, roll = costates[..., 9:].unbind(-1)
        yaw = problem.yaw_gain * yaw
        pitch, roll = problem.tilt_gain * pitch, problem.tilt_gain * roll
        factors = (lift - yaw - pitch, lift + yaw + roll, lift - yaw + pitch, lift + yaw - roll)
        #: a and e, the factors of w^2 and w in <p, f>, (batch, 4 N)
        self.squared = torch.stack(factors, -1).flatten(1)
        self.linear = drag.repeat_interleave(4, 1)
        self._effort = problem.effort_weight / problem.n_agents
        self._supply = problem.supply_weight / problem.n_agents
        # Half the inverse of the largest curvature at hovering.
        self.plain_step_size = 0.5 / (self._effort + 4.0 * self._supply)

    def dynamics(self, u: Tensor) -> Tensor:
        return self.problem.rate(self._z, u, *self._air)

    def control_part(self, u: Tensor) -> Tensor:
        w, total = self.problem.rotor_speed(u), self._total(u)
        push = torch.linalg.vecdot(self.squared * w + self.linear, w)
        cost = self._effort * torch.linalg.vecdot(u, u) + self._supply * total.square().sum(1)
        return -push - 0.5 * cost

    def constant_part(self) -> Tensor:
        problem, no_control = self.problem, torch.zeros_like(self.squared)
        drift = problem.dynamics(self._t, self._z, no_control)
        cost = problem.running_cost(self._t, self._z, no_control)
        # At zero commands every rotor turns at 1: what that pushes is in the other part.
        pushed = self.squared.sum(1) + self.linear.sum(1)
        return pushed - torch.linalg.vecdot(self._p, drift) - cost

    def grad(self, u: Tensor) -> Tensor:
        q = torch.tanh(u / self.problem.speed_range)
        slope = torch.addcmul(self._push(q), self._push(q), q.square(), value=-1.0)
        return -slope - self._effort * u - self._shared(u)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return -self._curvature(u) * v - self._shared(v)

    def curvature_scaling(self, u: Tensor) -> Tensor:
        # With k_i the curvature without the supply's, D_i = 1 / (k_i + 2 supply) gives -D Hessian
        # eigenvalues between k / (k + 2 supply) and (k + 4 supply) / (k + 2 supply), because the
        # supply's matrix lies between 0 and 4: a contraction wherever k is positive.
        with torch.no_grad():
            return (self._positive_curvature(u) + 2.0 * self._supply).reciprocal()

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        with torch.no_grad():
            inverse = self._positive_curvature(u).reciprocal()
            # Sherman-Morrison, agent by agent: diag(k) + supply 1 1^T
            share = self._supply / (1.0 + self._supply * self._total(inverse))
        scaled = inverse * r
        return scaled - inverse * (share * self._total(scaled)).repeat_interleave(4, 1)

    def _push(self, q: Tensor) -> Tensor:
        """2 a w + e at tanh(u / s) = q: what a faster rotor adds to <p, f>, (batch, 4 N)."""
        s = self.problem.speed_range
        return torch.addcmul(2.0 * self.squared + self.linear, self.squared, q, value=2.0 * s)

    def _curvature(self, u: Tensor) -> Tensor:
        """The diagonal of -Hessian without the supply's part, (batch, 4 N)."""
        q = torch.tanh(u / self.problem.speed_range)
        inside = 1.0 - q.square()
        bent = self._push(q) * q * (-2.0 / self.problem.speed_range)
        return self._effort + inside * (2.0 * self.squared * inside + bent)

    def _positive_curvature(self, u: Tensor) -> Tensor:
        floor = _CURVATURE_FLOOR * self._effort
        return self._curvature(u.detach()).detach().abs().clamp_min(floor)

    def _total(self, u: Tensor) -> Tensor:
        """Sum over the rotors of every agent: (batch, 4 N) -> (batch, N)."""
        return u.reshape(u.shape[0], -1, 4).sum(-1)

    def _shared(self, u: Tensor) -> Tensor:
        """supply / N times the sum over an agent's rotors, for each of them: (batch, 4 N)."""
        return (self._supply * self._total(u)).repeat_interleave(4, 1)
