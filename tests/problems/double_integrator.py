"""A problem of four formulas and nothing else: N double integrators in the plane."""

from __future__ import annotations

import torch

from jfbcore.problems import Problem


class DoubleIntegrator(Problem):
    """Position and velocity follow an acceleration that costs exp(|u|^2 / 2)."""

    name = "double-integrator"

    def __init__(
        self, n_agents=1, *, t_final=2.0, n_steps=20, dtype=torch.float32, device="cpu"
    ) -> None:
        super().__init__(t_final=t_final, n_steps=n_steps, dtype=dtype, device=device)
        self.n_agents = n_agents
        self.state_dim, self.control_dim = 4 * n_agents, 2 * n_agents

    def dynamics(self, t, z, u):
        z, u = z.view(-1, self.n_agents, 4), u.view(-1, self.n_agents, 2)
        return torch.cat((z[..., 2:], u), -1).flatten(1)

    def running_cost(self, t, z, u):
        return (u.square().sum(1) / 2).exp()

    def terminal_cost(self, z):
        z = z.view(-1, self.n_agents, 4)
        miss, velocity = z[..., :2] - 1.0, z[..., 2:]
        return 10.0 * (miss.square() + velocity.square()).sum((1, 2))

    def sample_initial_states(self, batch, generator):
        return 0.1 * self._normal(batch, self.state_dim, generator)
