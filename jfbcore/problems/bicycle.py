"""Bicycles steering to a common target, with a Hamiltonian that is not concave (sec. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.problems.base import Hamiltonian, Problem, Time
from jfbcore.problems.interaction import interaction_cost

STATES_PER_AGENT = 4
CONTROLS_PER_AGENT = 2


class Bicycle(Problem):
    """N kinematic bicycles coupled through an interaction cost only.

    State, (batch, 4 N), agent-major: x, y [m], heading psi [rad], speed v [m/s]. Control,
    (batch, 2 N): steering delta [rad], held within +-`max_steering`, and acceleration [m/s^2].

    The dynamics are affine in tan(delta), so H = -kappa tan(delta) - delta^2/2 + ... with
    kappa = p_psi v / l is not concave. For |kappa| above about 0.41 the maximiser sits on the
    steering bound; between about 0.23 and 0.41 an interior local maximiser exists beside the
    global one on the bound, and an ascent from zero steering finds the interior one.
    """

    name = "bicycle"

    def __init__(
        self,
        n_agents: int = 1,
        *,
        wheelbase: float = 0.05,
        max_steering: float = math.pi / 2 - 0.25,
        interaction_weight: float = 5.0,
        terminal_weight: float = 250.0,
        target_position: Sequence[float] = (1.0, 1.0),
        initial_scale: float = 0.1,
        initial_heading: float = 0.1,
        initial_speed: float = 0.1,
        t_final: float = 4.0,
        n_steps: int = 60,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(t_final=t_final, n_steps=n_steps, dtype=dtype, device=device)
        self.n_agents = _validate.positive_int("n_agents", n_agents)
        self.wheelbase = _validate.positive("wheelbase", wheelbase)
        self.max_steering = _validate.positive("max_steering", max_steering)
        if self.max_steering >= math.pi / 2:
            raise ValueError(f"`max_steering` must be < pi/2, got {max_steering}")
        self.interaction_weight = _validate.non_negative("interaction_weight", interaction_weight)
        self.terminal_weight = _validate.non_negative("terminal_weight", terminal_weight)
        self.initial_scale = _validate.non_negative("initial_scale", initial_scale)
        self.initial_heading = _validate.finite("initial_heading", initial_heading)
        self.initial_speed = _validate.finite("initial_speed", initial_speed)
        self.target_position = _validate.point("target_position", target_position, 2)
        self.state_dim = STATES_PER_AGENT * self.n_agents
        self.control_dim = CONTROLS_PER_AGENT * self.n_agents

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """f(t, z, u): (batch, 4 N), (batch, 2 N) -> (batch, 4 N)."""
        self.check(z=z, u=u)
        heading, speed = self._agents(z)[..., 2:].unbind(-1)
        steering, acceleration = self._controls(u)
        rate = (
            speed * heading.cos(),
            speed * heading.sin(),
            speed * steering.tan() / self.wheelbase,
            acceleration,
        )
        return torch.stack(rate, -1).flatten(1)

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = |u|^2 / 2 + interaction_weight * Q: -> (batch,)."""
        self.check(z=z, u=u)
        cost = 0.5 * torch.linalg.vecdot(u, u)
        if self.interaction_weight == 0 or self.n_agents == 1:
            return cost
        interaction = interaction_cost(self._agents(z)[..., :2])
        return torch.add(cost, interaction, alpha=self.interaction_weight)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = terminal_weight * sum over agents |position - target|^2: (batch, 4 N) -> (batch,)."""
        self.check(z=z)
        x, y = (
            self._agents(z)[..., i] - coordinate
            for i, coordinate in enumerate(self.target_position)
        )
        return self.terminal_weight * (x.square() + y.square()).sum(1)

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        self.check(z=z, p=p)
        return _BicycleHamiltonian(self, t, z, p)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions; heading 0.1 rad and speed 0.1 m/s: (batch, 4 N)."""
        draw = self._normal(batch, 2 * self.n_agents, generator).view(batch, self.n_agents, 2)
        states = draw.new_empty(batch, self.n_agents, STATES_PER_AGENT)
        states[..., :2] = self.initial_scale * draw
        states[..., 2] = self.initial_heading
        states[..., 3] = self.initial_speed
        return states.flatten(1)

    def _agents(self, z: Tensor) -> Tensor:
        return z.reshape(z.shape[0], self.n_agents, STATES_PER_AGENT)

    def _controls(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Steering and acceleration, (batch, N) each."""
        steering, acceleration = u.reshape(u.shape[0], self.n_agents, CONTROLS_PER_AGENT).unbind(-1)
        return steering, acceleration


class _BicycleHamiltonian(Hamiltonian):
    """H = -sum(kappa tan(delta) + p_v a) - |u|^2/2 + terms without u; separable over controls."""

    constrained = True
    # The Hessian of L is the identity; below 1 so that steering does not overshoot its maximiser.
    plain_step_size = 0.5

    #: smallest curvature Newton-type steps divide by: a step of at most 20 times the gradient
    _CURVATURE_FLOOR = 0.05

    problem: Bicycle

    def __init__(self, problem: Bicycle, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p
        _, _, p_heading, self._p_speed = problem._agents(p).unbind(-1)
        #: kappa = p_psi v / l, (batch, N)
        self.kappa = p_heading * problem._agents(z)[..., 3] / problem.wheelbase

    def control_part(self, u: Tensor) -> Tensor:
        steering, acceleration = self.problem._controls(u)
        along = self.kappa * steering.tan() + self._p_speed * acceleration
        return -along.sum(1) - 0.5 * torch.linalg.vecdot(u, u)

    def constant_part(self) -> Tensor:
        no_control = self.problem.initial_control(self._t, self._z)
        drift = self.problem.dynamics(self._t, self._z, no_control)
        cost = self.problem.running_cost(self._t, self._z, no_control)
        return -torch.linalg.vecdot(self._p, drift) - cost

    def grad(self, u: Tensor) -> Tensor:
        steering, _ = self.problem._controls(u)
        pull = torch.stack((self.kappa / steering.cos().square(), self._p_speed), -1)
        return -u - pull.flatten(1)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return -self._negative_curvature(u, self.kappa) * v

    def curvature_scaling(self, u: Tensor) -> Tensor:
        curvature = self._negative_curvature(u.detach(), self.kappa.detach())
        return curvature.abs().clamp_min(self._CURVATURE_FLOOR).reciprocal()

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        return self.curvature_scaling(u) * r

    def project(self, u: Tensor) -> Tensor:
        steering, acceleration = self.problem._controls(u)
        bound = self.problem.max_steering
        return torch.stack((steering.clamp(-bound, bound), acceleration), -1).flatten(1)

    def interior(self, u: Tensor) -> Tensor:
        steering, acceleration = self.problem._controls(u)
        inside = steering.abs() < self.problem.max_steering
        return torch.stack((inside, torch.ones_like(acceleration, dtype=torch.bool)), -1).flatten(1)

    def _negative_curvature(self, u: Tensor, kappa: Tensor) -> Tensor:
        """-(diagonal of the Hessian): 1 + 2 kappa sec^2 tan for steering, 1 for acceleration."""
        steering, acceleration = self.problem._controls(u)
        tangent = steering.tan()
        bend = 1.0 + 2.0 * kappa * tangent * (1.0 + tangent.square())
        return torch.stack((bend, torch.ones_like(acceleration)), -1).flatten(1)
