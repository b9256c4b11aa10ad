"""The quadrotor's Hamiltonian and the derivatives of its dynamics, written by hand.

Beside `Quadrotor.dynamics_formula` and `control_pull_formula`, which say what is computed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jfbcore.hamiltonian import Hamiltonian
from jfbcore.kernels.fused import differentiable_vjp, plain_formula_required

if TYPE_CHECKING:
    from jfbcore._time import Time
    from jfbcore.problems.quadrotor import Quadrotor

STATES_PER_AGENT = 12
CONTROLS_PER_AGENT = 4


class QuadrotorHamiltonian(Hamiltonian):
    """H = -<c, u> - exp(|u|^2 / 2N) + terms without u, where c = (df/du)^T p."""

    problem: Quadrotor

    def __init__(self, problem: Quadrotor, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        self._n = problem.n_agents
        plain = plain_formula_required()
        self._attitude = None if plain else attitude_of(z)
        #: -c = -(df/du)^T p, (batch, 4 N)
        self._pull = (
            control_pull_formula(problem, z, p)
            if plain
            else ControlPull.apply(problem, z, p, self._attitude)
        )
        if plain and self._pull.shape[0] > self._pull.shape[1]:
            self._pull = self._pull.mT.clone(memory_format=torch.contiguous_format).mT
        # Where a compiled loop over u does not evaluate it again.
        self._longest = self._longest_scaling() if torch.compiler.is_compiling() else None
        # The Hessian of L at zero control is I/N; half of its inverse leaves room for growth.
        self.plain_step_size = 0.5 * self._n

    def _exponent(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """s = |u|^2 / 2N and exp(s), (batch, 1) each."""
        s = torch.linalg.vecdot(u, u).unsqueeze(-1) * (0.5 / self._n)
        return s, s.exp()

    def dynamics(self, u: Tensor) -> Tensor:
        """f(t, z, u) at this Hamiltonian's t and z, (batch, n)."""
        problem = self.problem
        if self._attitude is None:
            return problem.dynamics(self._t, self._z, u)
        # The coefficient c has evaluated the attitude already.
        rate: Tensor = Dynamics.apply(problem, self._z, u, self._attitude)
        return rate

    def control_part(self, u: Tensor) -> Tensor:
        """<c, u> - exp(|u|^2/2N), (batch,)."""
        along: Tensor = torch.linalg.vecdot(self._pull, u)
        return along - self._exponent(u)[1].squeeze(-1)

    def constant_part(self) -> Tensor:
        """The terms of H without a control, (batch,)."""
        problem, no_control = self.problem, torch.zeros_like(self._pull)
        drift = problem.dynamics(self._t, self._z, no_control)
        # The running cost at zero control counts exp(0) = 1 that is not constant in u.
        cost = problem.running_cost(self._t, self._z, no_control) - 1.0
        along: Tensor = torch.linalg.vecdot(self._p, drift)
        return -along - cost

    def grad(self, u: Tensor) -> Tensor:
        """Gradient of H in the control: (batch, m) -> (batch, m)."""
        _, weight = self._exponent(u)
        return torch.addcmul(self._pull, weight, u, value=-1.0 / self._n)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """Hessian of H in the control, at `u`, times `v`, (batch, m)."""
        weight = self._exponent(u)[1] / self._n
        along = torch.linalg.vecdot(u, v).div(self._n).unsqueeze(-1)
        return -weight * torch.addcmul(v, along, u)

    def curvature_scaling(self, u: Tensor) -> Tensor:
        """Positive scaling (batch, 1): the inverse mean of the extreme curvatures, capped."""
        # With s = |u|^2/2N, -Hessian = e^s/N (I + u u^T/N) has eigenvalues e^s/N and
        # e^s (1 + 2s)/N. The inverse of their mean gives spectral radius s/(1 + s) < 1.
        with torch.no_grad():
            s, weight = self._exponent(u)
            if self._longest is None:
                self._longest = self._longest_scaling()
            return torch.minimum(self._n / weight, self._longest).div_(s.add_(1.0))

    def _longest_scaling(self) -> Tensor:
        """The limit of the scaling, (batch, 1)."""
        # |u*| <= R = sqrt(N log(1 + N |c|^2)), because W0(x) <= log(1 + x). No step has to be
        # longer; without the limit the first one, from zero control, overshoots to |u| = N |c|,
        # where exp(|u|^2/2N) may overflow. At the fixed point N e^-s |c| = |u*| <= R: inactive.
        pull = self._pull.detach()
        # N log(1 + x)/x, x = N |c|^2, tends to N as c goes to zero: the clamp keeps it from 0/0.
        x = torch.linalg.vecdot(pull, pull).mul_(self._n)
        x = x.clamp_min_(torch.finfo(x.dtype).tiny)
        longest: Tensor = x.log1p().div_(x).sqrt_().mul_(self._n).unsqueeze(-1)
        return longest

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        """(-Hessian)^(-1) r, (batch, m), by Sherman and Morrison's formula."""
        # Sherman-Morrison: (I + u u^T/N)^-1 = I - u u^T / (N + |u|^2)
        u = u.detach()
        s, weight = self._exponent(u)
        along = torch.linalg.vecdot(u, r).unsqueeze(-1) / (self._n * (1.0 + 2.0 * s))
        return self._n / weight * torch.addcmul(r, along, u, value=-1.0)

    def control_coefficient(self) -> Tensor:
        """c = (df/du)^T p, (batch, m)."""
        return -self._pull

    def closed_form(self) -> Tensor:
        """u* = -N exp(-W0(N |c|^2) / 2) c, W0 Lambert's function, evaluated in float64."""
        # Optional at import time: only the oracle needs scipy.
        from scipy.special import lambertw

        pull = self._pull.detach().to(torch.float64)
        argument = self._n * torch.linalg.vecdot(pull, pull)
        branch = torch.from_numpy(lambertw(argument.cpu().numpy()).real).to(pull.device)
        control = self._n * torch.exp(-0.5 * branch).unsqueeze(-1) * pull
        return control.to(self._pull.dtype)


def attitude_of(z: Tensor) -> Tensor:
    """Sines and cosines of (yaw, pitch, roll) and the unit thrust direction: (9, batch, N).

    Without a graph: the hand-written derivatives below know what it depends on. Components
    first: every operation below then runs over contiguous memory.
    """
    angles = _components(_agents(z.detach(), STATES_PER_AGENT), 3).contiguous()
    found = angles.new_empty(9, *angles.shape[1:])
    torch.sin(angles, out=found[:3])
    torch.cos(angles, out=found[3:6])
    s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, *direction = found.unbind(0)
    lean = s_pitch * c_roll
    torch.addcmul(s_yaw * s_roll, c_yaw, lean, out=direction[0])
    torch.addcmul(s_yaw * lean, c_yaw, s_roll, value=-1.0, out=direction[1])
    torch.mul(c_pitch, c_roll, out=direction[2])
    return found


def _direction_vjp(attitude: Tensor, w: Tensor, out: Tensor) -> None:
    """Write (d direction / d angles)^T w, for w (3, batch, N), into `out` (batch, N, 3)."""
    s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, _ = attitude.unbind(0)
    w1, w2, w3 = w.unbind(0)
    forward = torch.addcmul(w1 * c_yaw, w2, s_yaw)
    sideways = torch.addcmul(w1 * s_yaw, w2, c_yaw, value=-1.0)
    torch.addcmul(w2 * d1, w1, d2, value=-1.0, out=out[..., 0])
    torch.mul(c_roll, torch.addcmul(c_pitch * forward, w3, s_pitch, value=-1.0), out=out[..., 1])
    tilt = torch.addcmul(s_pitch * forward, w3, c_pitch)
    torch.addcmul(c_roll * sideways, s_roll, tilt, value=-1.0, out=out[..., 2])


def _components(x: Tensor, first: int) -> Tensor:
    """Three components of (batch, N, k) from `first` on, as a view (3, batch, N)."""
    return x[..., first : first + 3].movedim(-1, 0)


def _agents(x: Tensor, width: int) -> Tensor:
    return x.reshape(x.shape[0], -1, width)


def control_pull_formula(problem: Quadrotor, z: Tensor, p: Tensor) -> Tensor:
    """-(df/du)^T p in plain operations: (batch, 12 N) twice -> (batch, 4 N)."""
    agents, costates = _agents(z, STATES_PER_AGENT), _agents(p, STATES_PER_AGENT)
    along = torch.linalg.vecdot(problem.thrust_direction(agents), costates[..., 6:9])
    thrust = along.unsqueeze(-1) / problem.mass
    return -torch.cat((thrust, costates[..., 9:]), -1).flatten(1)


class Dynamics(torch.autograd.Function):
    """`Quadrotor.dynamics_formula`, its derivative by hand: saves z, u and the attitude."""

    @staticmethod
    def forward(ctx: Any, problem: Quadrotor, z: Tensor, u: Tensor, attitude: Tensor) -> Tensor:
        """f(z, u), (batch, n), agent by agent without a loop."""
        ctx.save_for_backward(z, u, attitude)
        ctx.problem = problem
        agents, controls = _agents(z, STATES_PER_AGENT), _agents(u, CONTROLS_PER_AGENT)
        rate = torch.empty_like(agents)
        rate[..., :6] = agents[..., 6:]
        torch.mul(attitude[6:], controls[..., 0] / problem.mass, out=_components(rate, 6))
        rate[..., 8] -= problem.g
        rate[..., 9:] = controls[..., 1:]
        return rate.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad_rate: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of the states and the controls."""
        z, u, attitude = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = ctx.problem.dynamics_formula
            return None, *differentiable_vjp(formula, (z, u), grad_rate), None
        agents, controls = _agents(z, STATES_PER_AGENT), _agents(u, CONTROLS_PER_AGENT)
        grad_rate = _agents(grad_rate, STATES_PER_AGENT)
        grad_acceleration = _components(grad_rate, 6).contiguous()
        grad_z = grad_u = None
        if ctx.needs_input_grad[1]:
            grad_z = torch.empty_like(agents)
            grad_z[..., :3] = 0.0
            force = grad_acceleration * (controls[..., 0] / ctx.problem.mass)
            _direction_vjp(attitude, force, grad_z[..., 3:6])
            grad_z[..., 6:] = grad_rate[..., :6]
            grad_z = grad_z.view_as(z)
        if ctx.needs_input_grad[2]:
            grad_u = torch.empty_like(controls)
            along = (attitude[6:] * grad_acceleration).sum(0)
            torch.div(along, ctx.problem.mass, out=grad_u[..., 0])
            grad_u[..., 1:] = grad_rate[..., 9:]
            grad_u = grad_u.view_as(u)
        return None, grad_z, grad_u, None


class ControlPull(torch.autograd.Function):
    """`control_pull_formula`, its derivative by hand: saves z, p and the attitude."""

    @staticmethod
    def forward(ctx: Any, problem: Quadrotor, z: Tensor, p: Tensor, attitude: Tensor) -> Tensor:
        """c = (df/du)^T p, (batch, m)."""
        ctx.save_for_backward(z, p, attitude)
        ctx.problem = problem
        costates = _agents(p, STATES_PER_AGENT)
        c = p.new_empty(*costates.shape[:2], CONTROLS_PER_AGENT)
        along = (attitude[6:] * _components(costates, 6)).sum(0)
        torch.div(along, -problem.mass, out=c[..., 0])
        torch.neg(costates[..., 9:], out=c[..., 1:])
        return c.view(z.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of the states and the costates."""
        z, p, attitude = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = functools.partial(control_pull_formula, ctx.problem)
            return None, *differentiable_vjp(formula, (z, p), grad_c), None
        costates = _agents(p, STATES_PER_AGENT)
        grad_c = _agents(grad_c, CONTROLS_PER_AGENT)
        grad_thrust = grad_c[..., 0] / -ctx.problem.mass
        grad_z = grad_p = None
        if ctx.needs_input_grad[1]:
            grad_z = torch.zeros_like(costates)
            force = _components(costates, 6) * grad_thrust
            _direction_vjp(attitude, force, grad_z[..., 3:6])
            grad_z = grad_z.view_as(z)
        if ctx.needs_input_grad[2]:
            grad_p = torch.empty_like(costates)
            grad_p[..., :6] = 0.0
            torch.mul(attitude[6:], grad_thrust, out=_components(grad_p, 6))
            torch.neg(grad_c[..., 1:], out=grad_p[..., 9:])
            grad_p = grad_p.view_as(p)
        return None, grad_z, grad_p, None
