"""A swarm of quadrotors that fly to a common target and keep apart (arXiv 2602.00921, sec. 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.kernels.fused import differentiable_vjp, plain_formula_required
from jfbcore.problems.base import Hamiltonian, Problem, Time
from jfbcore.problems.interaction import interaction_cost

STATES_PER_AGENT = 12
CONTROLS_PER_AGENT = 4


class Quadrotor(Problem):
    """N quadrotors coupled through the control cost exp(|u|^2 / 2N) and an interaction cost.

    State, (batch, 12 N), agent-major: position [m], angles (yaw psi, pitch theta, roll phi)
    [rad], velocity [m/s], angular rates [rad/s]. Control, (batch, 4 N): thrust [N], then angular
    accelerations [rad/s^2]. The dynamics are affine in the control and block-diagonal over
    agents; H is strictly concave with a closed-form maximiser, which serves as an oracle.
    """

    name = "quadrotor"

    def __init__(
        self,
        n_agents: int = 1,
        *,
        mass: float = 0.5,
        g: float = 1.0,
        interaction_weight: float = 0.1,
        terminal_weight: float = 1000.0,
        target_position: Sequence[float] = (2.0, 2.0, 2.0),
        initial_scale: float = 0.1,
        t_final: float = 4.5,
        n_steps: int = 160,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(t_final=t_final, n_steps=n_steps, dtype=dtype, device=device)
        self.n_agents = _validate.positive_int("n_agents", n_agents)
        self.mass = _validate.positive("mass", mass)
        self.g = _validate.finite("g", g)
        self.interaction_weight = _validate.non_negative("interaction_weight", interaction_weight)
        self.terminal_weight = _validate.non_negative("terminal_weight", terminal_weight)
        self.initial_scale = _validate.non_negative("initial_scale", initial_scale)
        self.target_position = _validate.point("target_position", target_position, 3)
        self.state_dim = STATES_PER_AGENT * self.n_agents
        self.control_dim = CONTROLS_PER_AGENT * self.n_agents

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """f(t, z, u): (batch, 12 N), (batch, 4 N) -> (batch, 12 N)."""
        self.check(z=z, u=u)
        if plain_formula_required():
            return _plain_dynamics(z, u, self.mass, self.g)
        return _Dynamics.apply(z, u, _attitude(z), self.mass, self.g)

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = exp(|u|^2 / 2N) + interaction_weight * Q: -> (batch,)."""
        self.check(z=z, u=u)
        cost = torch.linalg.vecdot(u, u).mul(0.5 / self.n_agents).exp()
        if self.interaction_weight == 0 or self.n_agents == 1:
            return cost
        return torch.add(cost, self._interaction(z), alpha=self.interaction_weight)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = terminal_weight / (4N) |z - z_target|^2: (batch, 12 N) -> (batch,)."""
        self.check(z=z)
        miss = z - self.target_state(z)
        return torch.linalg.vecdot(miss, miss).mul(0.25 * self.terminal_weight / self.n_agents)

    def target_state(self, like: Tensor) -> Tensor:
        """The target (12 N,): every agent at rest at `target_position`, angles zero."""
        one = like.new_zeros(STATES_PER_AGENT)
        # Filled in where it lies: a tensor of host numbers would be copied, and waited for.
        for i, coordinate in enumerate(self.target_position):
            one[i].fill_(coordinate)
        return one.repeat(self.n_agents)

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        self.check(z=z, p=p)
        return _QuadrotorHamiltonian(self, t, z, p)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions and angles, zero velocities and rates: (batch, 12 N)."""
        draw = self._normal(batch, 6 * self.n_agents, generator).view(batch, self.n_agents, 6)
        states = draw.new_zeros(batch, self.n_agents, STATES_PER_AGENT)
        states[..., :6] = self.initial_scale * draw
        return states.view(batch, self.state_dim)

    def _interaction(self, z: Tensor) -> Tensor:
        return interaction_cost(z.view(z.shape[0], self.n_agents, STATES_PER_AGENT)[..., :3])


class _QuadrotorHamiltonian(Hamiltonian):
    """H = -<c, u> - exp(|u|^2 / 2N) + terms without u, where c = (df/du)^T p."""

    problem: Quadrotor

    def __init__(self, problem: Quadrotor, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        self._n = problem.n_agents
        self._longest: Tensor | None = None
        plain = plain_formula_required()
        self._attitude = None if plain else _attitude(z)
        #: c = (df/du)^T p, (batch, 4 N)
        self.linear = (
            _plain_control_coefficient(z, p, problem.mass)
            if plain
            else _ControlCoefficient.apply(z, p, self._attitude, problem.mass)
        )
        # The Hessian of L at zero control is I/N; half of its inverse leaves room for growth.
        self.plain_step_size = 0.5 * self._n

    def _exponent(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """s = |u|^2 / 2N and exp(s), (batch, 1) each."""
        s = torch.linalg.vecdot(u, u).unsqueeze(-1) * (0.5 / self._n)
        return s, s.exp()

    def dynamics(self, u: Tensor) -> Tensor:
        problem = self.problem
        if self._attitude is None:
            return problem.dynamics(self._t, self._z, u)
        # The coefficient c has evaluated the attitude already.
        return _Dynamics.apply(self._z, u, self._attitude, problem.mass, problem.g)

    def control_part(self, u: Tensor) -> Tensor:
        cost = self._exponent(u)[1].squeeze(-1)
        return -torch.linalg.vecdot(self.linear, u) - cost

    def constant_part(self) -> Tensor:
        problem, no_control = self.problem, torch.zeros_like(self.linear)
        drift = problem.dynamics(self._t, self._z, no_control)
        # The running cost at zero control counts exp(0) = 1 that is not constant in u.
        cost = problem.running_cost(self._t, self._z, no_control) - 1.0
        return -torch.linalg.vecdot(self._p, drift) - cost

    def grad(self, u: Tensor) -> Tensor:
        _, weight = self._exponent(u)
        return torch.addcmul(self.linear, weight, u, value=1.0 / self._n).neg_()

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        weight = self._exponent(u)[1] / self._n
        along = torch.linalg.vecdot(u, v).div(self._n).unsqueeze(-1)
        return -weight * torch.addcmul(v, along, u)

    def curvature_scaling(self, u: Tensor) -> Tensor:
        # With s = |u|^2/2N, -Hessian = e^s/N (I + u u^T/N) has eigenvalues e^s/N and
        # e^s (1 + 2s)/N. The inverse of their mean gives spectral radius s/(1 + s) < 1.
        with torch.no_grad():
            s = torch.linalg.vecdot(u, u).mul_(0.5 / self._n).unsqueeze_(-1)
            scale = torch.minimum(self._n * (-s).exp_(), self._longest_step())
            return scale.div_(s.add_(1.0))

    def _longest_step(self) -> Tensor:
        if torch.compiler.is_compiling():
            return self._compute_longest_step()
        if self._longest is None:
            self._longest = self._compute_longest_step()
        return self._longest

    def _compute_longest_step(self) -> Tensor:
        # |u*| <= R = sqrt(N log(1 + N |c|^2)), because W0(x) <= log(1 + x). No step has to be
        # longer; without the limit the first one, from zero control, overshoots to |u| = N |c|,
        # where exp(|u|^2/2N) may overflow. At the fixed point N e^-s |c| = |u*| <= R: inactive.
        linear = self.linear.detach()
        # N log(1 + x)/x, x = N |c|^2, tends to N as c goes to zero: the clamp keeps it from 0/0.
        x = torch.linalg.vecdot(linear, linear).mul_(self._n)
        x = x.clamp_min_(torch.finfo(x.dtype).tiny)
        return x.log1p().div_(x).sqrt_().mul_(self._n).unsqueeze(-1)

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        # Sherman-Morrison: (I + u u^T/N)^-1 = I - u u^T / (N + |u|^2)
        u = u.detach()
        s, weight = self._exponent(u)
        along = torch.linalg.vecdot(u, r).unsqueeze(-1) / (self._n * (1.0 + 2.0 * s))
        return self._n / weight * torch.addcmul(r, along, u, value=-1.0)

    def control_coefficient(self) -> Tensor:
        return self.linear

    def closed_form(self) -> Tensor:
        """u* = -N exp(-W0(N |c|^2) / 2) c, W0 Lambert's function, evaluated in float64."""
        # Optional at import time: only the oracle needs scipy.
        from scipy.special import lambertw

        c = self.linear.detach().to(torch.float64)
        argument = self._n * torch.linalg.vecdot(c, c)
        branch = torch.from_numpy(lambertw(argument.cpu().numpy()).real).to(c.device)
        control = -self._n * torch.exp(-0.5 * branch).unsqueeze(-1) * c
        return control.to(self.linear.dtype)


def _attitude(z: Tensor) -> Tensor:
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


def _plain_direction(agents: Tensor) -> Tensor:
    yaw, pitch, roll = agents[..., 3:6].unbind(-1)
    lean = pitch.sin() * roll.cos()
    return torch.stack(
        (
            yaw.sin() * roll.sin() + yaw.cos() * lean,
            yaw.sin() * lean - yaw.cos() * roll.sin(),
            pitch.cos() * roll.cos(),
        ),
        -1,
    )


def _plain_dynamics(z: Tensor, u: Tensor, mass: float, g: float) -> Tensor:
    agents, controls = _agents(z, STATES_PER_AGENT), _agents(u, CONTROLS_PER_AGENT)
    force = _plain_direction(agents) * (controls[..., :1] / mass)
    rate = (agents[..., 6:], force[..., :2], force[..., 2:] - g, controls[..., 1:])
    return torch.cat(rate, -1).view_as(z)


def _plain_control_coefficient(z: Tensor, p: Tensor, mass: float) -> Tensor:
    agents, costates = _agents(z, STATES_PER_AGENT), _agents(p, STATES_PER_AGENT)
    thrust = torch.linalg.vecdot(_plain_direction(agents), costates[..., 6:9]) / mass
    return torch.cat((thrust.unsqueeze(-1), costates[..., 9:]), -1).flatten(1)


class _Dynamics(torch.autograd.Function):
    """`_plain_dynamics` with a hand-written vector-Jacobian product: saves z, u, the attitude."""

    @staticmethod
    def forward(ctx, z: Tensor, u: Tensor, attitude: Tensor, mass: float, g: float) -> Tensor:
        ctx.save_for_backward(z, u, attitude)
        ctx.mass, ctx.g = mass, g
        agents, controls = _agents(z, STATES_PER_AGENT), _agents(u, CONTROLS_PER_AGENT)
        rate = torch.empty_like(agents)
        rate[..., :6] = agents[..., 6:]
        torch.mul(attitude[6:], controls[..., 0] / mass, out=_components(rate, 6))
        rate[..., 8] -= g
        rate[..., 9:] = controls[..., 1:]
        return rate.view_as(z)

    @staticmethod
    def backward(ctx, grad_rate: Tensor):
        z, u, attitude = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = lambda z, u: _plain_dynamics(z, u, ctx.mass, ctx.g)  # noqa: E731
            return *differentiable_vjp(formula, (z, u), grad_rate), None, None, None
        agents, controls = _agents(z, STATES_PER_AGENT), _agents(u, CONTROLS_PER_AGENT)
        grad_rate = _agents(grad_rate, STATES_PER_AGENT)
        grad_acceleration = _components(grad_rate, 6).contiguous()
        grad_z = grad_u = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.empty_like(agents)
            grad_z[..., :3] = 0.0
            force = grad_acceleration * (controls[..., 0] / ctx.mass)
            _direction_vjp(attitude, force, grad_z[..., 3:6])
            grad_z[..., 6:] = grad_rate[..., :6]
            grad_z = grad_z.view_as(z)
        if ctx.needs_input_grad[1]:
            grad_u = torch.empty_like(controls)
            along = (attitude[6:] * grad_acceleration).sum(0)
            torch.div(along, ctx.mass, out=grad_u[..., 0])
            grad_u[..., 1:] = grad_rate[..., 9:]
            grad_u = grad_u.view_as(u)
        return grad_z, grad_u, None, None, None


class _ControlCoefficient(torch.autograd.Function):
    """`_plain_control_coefficient`, its derivative by hand: saves z, p and the attitude."""

    @staticmethod
    def forward(ctx, z: Tensor, p: Tensor, attitude: Tensor, mass: float) -> Tensor:
        ctx.save_for_backward(z, p, attitude)
        ctx.mass = mass
        costates = _agents(p, STATES_PER_AGENT)
        c = p.new_empty(*costates.shape[:2], CONTROLS_PER_AGENT)
        along = (attitude[6:] * _components(costates, 6)).sum(0)
        torch.div(along, mass, out=c[..., 0])
        c[..., 1:] = costates[..., 9:]
        return c.view(z.shape[0], -1)

    @staticmethod
    def backward(ctx, grad_c: Tensor):
        z, p, attitude = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = lambda z, p: _plain_control_coefficient(z, p, ctx.mass)  # noqa: E731
            return *differentiable_vjp(formula, (z, p), grad_c), None, None
        costates = _agents(p, STATES_PER_AGENT)
        grad_c = _agents(grad_c, CONTROLS_PER_AGENT)
        grad_thrust = grad_c[..., 0] / ctx.mass
        grad_z = grad_p = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.zeros_like(costates)
            force = _components(costates, 6) * grad_thrust
            _direction_vjp(attitude, force, grad_z[..., 3:6])
            grad_z = grad_z.view_as(z)
        if ctx.needs_input_grad[1]:
            grad_p = torch.empty_like(costates)
            grad_p[..., :6] = 0.0
            torch.mul(attitude[6:], grad_thrust, out=_components(grad_p, 6))
            grad_p[..., 9:] = grad_c[..., 1:]
            grad_p = grad_p.view_as(p)
        return grad_z, grad_p, None, None
