"""A double integrator with an exponential cost of control."""

import torch

from jfbcore.problems import Problem


class DoubleIntegrator(Problem):
    """Points that are pushed to the origin at a cost of exp(|u|^2 / 2)."""

    name = "double-integrator"

    def __init__(self, n_agents=1, *, n_steps=20, dtype=torch.float32, device="cpu"):
        super().__init__(t_final=1.0, n_steps=n_steps, dtype=dtype, device=device)
        self.n_agents, self.state_dim, self.control_dim = n_agents, 2 * n_agents, n_agents

    def dynamics(self, t, z, u):
        return torch.cat([z[:, self.n_agents :], u], dim=1)

    def running_cost(self, t, z, u):
        return torch.exp(0.5 * u.square().sum(1))

    def terminal_cost(self, z):
        return 5.0 * z.square().sum(1)

    def sample_initial_states(self, batch, generator):
        return 1.0 + 0.1 * self._normal(batch, self.state_dim, generator)
