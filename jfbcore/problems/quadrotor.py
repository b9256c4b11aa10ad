"""A swarm of quadrotors that fly to a common target and keep apart (arXiv 2602.00921, sec. 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.kernels.fused import plain_formula_required
from jfbcore.kernels.quadrotor import (
    CONTROLS_PER_AGENT,
    STATES_PER_AGENT,
    Dynamics,
    QuadrotorHamiltonian,
    attitude_of,
)
from jfbcore.problems.base import Hamiltonian, Problem, Time
from jfbcore.problems.interaction import interaction_cost


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
            return self.dynamics_formula(z, u)
        rate: Tensor = Dynamics.apply(self, z, u, attitude_of(z))
        return rate

    def dynamics_formula(self, z: Tensor, u: Tensor) -> Tensor:
        """`dynamics` in plain operations."""
        agents = z.reshape(z.shape[0], -1, STATES_PER_AGENT)
        controls = u.reshape(u.shape[0], -1, CONTROLS_PER_AGENT)
        force = self.thrust_direction(agents) * (controls[..., :1] / self.mass)
        rate = (agents[..., 6:], force[..., :2], force[..., 2:] - self.g, controls[..., 1:])
        return torch.cat(rate, -1).view_as(z)

    @staticmethod
    def thrust_direction(agents: Tensor) -> Tensor:
        """Unit vector of every agent's thrust: (batch, N, 12) -> (batch, N, 3)."""
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

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = exp(|u|^2 / 2N) + interaction_weight * Q: -> (batch,)."""
        self.check(z=z, u=u)
        cost: Tensor = torch.linalg.vecdot(u, u).mul(0.5 / self.n_agents).exp()
        if self.interaction_weight == 0 or self.n_agents == 1:
            return cost
        return torch.add(cost, self._interaction(z), alpha=self.interaction_weight)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = terminal_weight / (4N) |z - z_target|^2: (batch, 12 N) -> (batch,)."""
        self.check(z=z)
        miss = z - self.target_state(z)
        squared: Tensor = torch.linalg.vecdot(miss, miss)
        return squared.mul(0.25 * self.terminal_weight / self.n_agents)

    def target_state(self, like: Tensor) -> Tensor:
        """The target (12 N,): every agent at rest at `target_position`, angles zero."""
        one = like.new_zeros(STATES_PER_AGENT)
        # Filled in where it lies: a tensor of host numbers would be copied, and waited for.
        for i, coordinate in enumerate(self.target_position):
            one[i].fill_(coordinate)
        return one.repeat(self.n_agents)

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        """H(t, z, p, .) with hand-written derivatives; z and p are (batch, n)."""
        self.check(z=z, p=p)
        return QuadrotorHamiltonian(self, t, z, p)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions and angles, zero velocities and rates: (batch, 12 N)."""
        draw = self._normal(batch, 6 * self.n_agents, generator).view(batch, self.n_agents, 6)
        states = draw.new_zeros(batch, self.n_agents, STATES_PER_AGENT)
        states[..., :6] = self.initial_scale * draw
        return states.view(batch, self.state_dim)

    def _interaction(self, z: Tensor) -> Tensor:
        return interaction_cost(z.view(z.shape[0], self.n_agents, STATES_PER_AGENT)[..., :3])
