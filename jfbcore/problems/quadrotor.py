"""A swarm of quadrotors that fly to a common target and keep apart (arXiv 2602.00921, sec. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from jfbcore._validate import finite, non_negative, parameter, points, positive, positive_int
from jfbcore.kernels.fused import plain_formula_required
from jfbcore.kernels.quadrotor import Dynamics, QuadrotorHamiltonian, attitude_of
from jfbcore.problems.base import Problem, Time
from jfbcore.problems.interaction import with_interaction


@dataclass(eq=False, repr=False)
class Quadrotor(Problem):
    """N quadrotors coupled through the control cost exp(|u|^2 / 2N) and an interaction cost.

    State, (batch, 12 N), agent-major: position [m], angles (yaw psi, pitch theta, roll phi)
    [rad], velocity [m/s], angular rates [rad/s]. Control, (batch, 4 N): thrust [N], then angular
    accelerations [rad/s^2]. The dynamics are affine in the control and block-diagonal over
    agents; H is strictly concave with a closed-form maximiser, which serves as an oracle.
    """

    name = "quadrotor"
    hamiltonian_class = QuadrotorHamiltonian
    steered = slice(6, 12)

    n_agents: int = parameter(1, positive_int)
    _: KW_ONLY
    mass: float = parameter(0.5, positive)
    g: float = parameter(1.0, finite)
    interaction_weight: float = parameter(0.1, non_negative)
    terminal_weight: float = parameter(1000.0, non_negative)
    target_position: Sequence[float] = parameter((2.0, 2.0, 2.0), points(3))
    initial_scale: float = parameter(0.1, non_negative)
    t_final: float = 4.5
    n_steps: int = 160

    def __post_init__(self, device: str | torch.device) -> None:
        super().__post_init__(device)
        self.state_dim, self.control_dim = 12 * self.n_agents, 4 * self.n_agents

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """f(t, z, u): (batch, 12 N), (batch, 4 N) -> (batch, 12 N)."""
        self.check(z=z, u=u)
        if plain_formula_required():
            return self.dynamics_formula(z, u)
        rate: Tensor = Dynamics.apply(self, z, u, attitude_of(z))
        return rate

    def dynamics_formula(self, z: Tensor, u: Tensor) -> Tensor:
        """`dynamics` in plain operations."""
        agents, controls = z.reshape(z.shape[0], -1, 12), u.reshape(u.shape[0], -1, 4)
        force = self.thrust_direction(agents) * (controls[..., :1] / self.mass)
        rate = (agents[..., 6:], force[..., :2], force[..., 2:] - self.g, controls[..., 1:])
        return torch.cat(rate, -1).view_as(z)

    @staticmethod
    def thrust_direction(agents: Tensor) -> Tensor:
        """Unit vector of every agent's thrust: (batch, N, 12) -> (batch, N, 3)."""
        yaw, pitch, roll = agents[..., 3:6].unbind(-1)
        lean = pitch.sin() * roll.cos()
        ahead = yaw.sin() * roll.sin() + yaw.cos() * lean
        aside = yaw.sin() * lean - yaw.cos() * roll.sin()
        return torch.stack((ahead, aside, pitch.cos() * roll.cos()), -1)

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = exp(|u|^2 / 2N) + interaction_weight * Q: -> (batch,)."""
        self.check(z=z, u=u)
        cost = torch.linalg.vecdot(u, u).mul(0.5 / self.n_agents).exp()
        agents = z.view(z.shape[0], self.n_agents, 12)
        return with_interaction(cost, self.interaction_weight, agents, 3)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = terminal_weight / (4N) |z - z_target|^2: (batch, 12 N) -> (batch,)."""
        self.check(z=z)
        miss = z - self.target_state(z)
        squared: Tensor = torch.linalg.vecdot(miss, miss)
        return squared.mul(0.25 * self.terminal_weight / self.n_agents)

    def target_state(self, like: Tensor) -> Tensor:
        """The target (12 N,): every agent at rest at `target_position`, angles zero."""
        one = like.new_zeros(12)
        # Filled in where it lies: a tensor of host numbers would be copied, and waited for.
        for i, coordinate in enumerate(self.target_position):
            one[i].fill_(coordinate)
        return one.repeat(self.n_agents)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions and angles, zero velocities and rates: (batch, 12 N)."""
        draw = self._normal(batch, 6 * self.n_agents, generator)
        return at_rest(self.initial_scale * draw)


def at_rest(places: Tensor) -> Tensor:
    """Positions and angles, (batch, 6 N), as states without velocities and rates, (batch, 12 N)."""
    return torch.nn.functional.pad(places.view(len(places), -1, 6), (0, 6)).flatten(1)
