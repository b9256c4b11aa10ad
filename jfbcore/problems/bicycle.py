"""Bicycles steering to a common target, with a Hamiltonian that is not concave (sec. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from jfbcore._validate import finite, non_negative, parameter, points, positive, positive_int
from jfbcore.kernels.bicycle import BicycleHamiltonian
from jfbcore.problems.base import Problem, Time
from jfbcore.problems.interaction import with_interaction


@dataclass(eq=False, repr=False)
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
    hamiltonian_class = BicycleHamiltonian
    steered = slice(2, 4)

    n_agents: int = parameter(1, positive_int)
    _: KW_ONLY
    wheelbase: float = parameter(0.05, positive)
    max_steering: float = parameter(math.pi / 2 - 0.25, positive)
    interaction_weight: float = parameter(5.0, non_negative)
    terminal_weight: float = parameter(250.0, non_negative)
    target_position: Sequence[float] = parameter((1.0, 1.0), points(2))
    initial_scale: float = parameter(0.1, non_negative)
    initial_heading: float = parameter(0.1, finite)
    initial_speed: float = parameter(0.1, finite)
    t_final: float = 4.0
    n_steps: int = 60

    def __post_init__(self, device: str | torch.device) -> None:
        super().__post_init__(device)
        if self.max_steering >= math.pi / 2:
            raise ValueError(f"`max_steering` must be < pi/2, got {self.max_steering}")
        self.state_dim, self.control_dim = 4 * self.n_agents, 2 * self.n_agents

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """f(t, z, u): (batch, 4 N), (batch, 2 N) -> (batch, 4 N)."""
        self.check(z=z, u=u)
        heading, speed = self.agents(z)[..., 2:].unbind(-1)
        steering, acceleration = self.controls(u)
        turn = speed * steering.tan() / self.wheelbase
        rate = (speed * heading.cos(), speed * heading.sin(), turn, acceleration)
        return torch.stack(rate, -1).flatten(1)

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = |u|^2 / 2 + interaction_weight * Q: -> (batch,)."""
        self.check(z=z, u=u)
        cost = 0.5 * torch.linalg.vecdot(u, u)
        return with_interaction(cost, self.interaction_weight, self.agents(z), 2)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = terminal_weight * sum over agents |position - target|^2: (batch, 4 N) -> (batch,)."""
        self.check(z=z)
        x, y = (self.agents(z)[..., i] - target for i, target in enumerate(self.target_position))
        return self.terminal_weight * (x.square() + y.square()).sum(1)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions; heading 0.1 rad and speed 0.1 m/s: (batch, 4 N)."""
        draw = self._normal(batch, 2 * self.n_agents, generator).view(batch, self.n_agents, 2)
        heading = torch.full_like(draw[..., :1], self.initial_heading)
        speed = torch.full_like(heading, self.initial_speed)
        return torch.cat((self.initial_scale * draw, heading, speed), -1).flatten(1)

    def agents(self, z: Tensor) -> Tensor:
        """States or costates by agent: (batch, 4 N) -> (batch, N, 4)."""
        return z.reshape(z.shape[0], self.n_agents, 4)

    def controls(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Steering and acceleration, (batch, N) each."""
        steering, acceleration = u.reshape(u.shape[0], self.n_agents, 2).unbind(-1)
        return steering, acceleration
