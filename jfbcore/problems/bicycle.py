"""Bicycles steering to a common target, with a Hamiltonian that is not concave (sec. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.kernels.bicycle import BicycleHamiltonian
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
        heading, speed = self.agents(z)[..., 2:].unbind(-1)
        steering, acceleration = self.controls(u)
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
        cost: Tensor = 0.5 * torch.linalg.vecdot(u, u)
        if self.interaction_weight == 0 or self.n_agents == 1:
            return cost
        interaction = interaction_cost(self.agents(z)[..., :2])
        return torch.add(cost, interaction, alpha=self.interaction_weight)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = terminal_weight * sum over agents |position - target|^2: (batch, 4 N) -> (batch,)."""
        self.check(z=z)
        x, y = (
            self.agents(z)[..., i] - coordinate for i, coordinate in enumerate(self.target_position)
        )
        return self.terminal_weight * (x.square() + y.square()).sum(1)

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        """H(t, z, p, .) with hand-written derivatives; z and p are (batch, n)."""
        self.check(z=z, p=p)
        return BicycleHamiltonian(self, t, z, p)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions; heading 0.1 rad and speed 0.1 m/s: (batch, 4 N)."""
        draw = self._normal(batch, 2 * self.n_agents, generator).view(batch, self.n_agents, 2)
        states = draw.new_empty(batch, self.n_agents, STATES_PER_AGENT)
        states[..., :2] = self.initial_scale * draw
        states[..., 2] = self.initial_heading
        states[..., 3] = self.initial_speed
        return states.flatten(1)

    def agents(self, z: Tensor) -> Tensor:
        """States or costates by agent: (batch, 4 N) -> (batch, N, 4)."""
        return z.reshape(z.shape[0], self.n_agents, STATES_PER_AGENT)

    def controls(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Steering and acceleration, (batch, N) each."""
        steering, acceleration = u.reshape(u.shape[0], self.n_agents, CONTROLS_PER_AGENT).unbind(-1)
        return steering, acceleration
