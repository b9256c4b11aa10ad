"""A value network whose agents share one network, for swarms of identical agents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jfbcore.network import ValueNetwork
from jfbcore.problems.base import Problem, Time


class SharedValueNetwork(nn.Module):
    """phi(t, z) = share * sum_i psi(t, z_i), one psi for all agents.

    Prefer it to one dense network for more than a few identical agents: relabelling agents
    relabels their costates, the number of parameters does not depend on the number of agents, and
    every agent gets feedback of full rank on its own state, where a dense network of width w
    spreads rank w + 10 over all of them. What it leaves out is that an agent's costate depends on
    the other agents; where they interact only through a weak cost, that is little. `share` is
    the problem's `agent_share`, so that psi has the size of one agent's costs.
    """

    def __init__(self, agent_network: ValueNetwork, n_agents: int, share: float) -> None:
        super().__init__()
        self.agent_network = agent_network
        self.n_agents = n_agents
        self.share = share

    @classmethod
    def for_problem(
        cls,
        problem: Problem,
        *,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> SharedValueNetwork:
        """psi of the problem's width and depth. Raises ValueError with the reason where the
        problem has no identical agents."""
        if (reason := cls.supports(problem)) is not None:
            raise ValueError(reason)
        agent_network = ValueNetwork(
            problem.state_dim // problem.n_agents,
            problem.network_width if width is None else width,
            problem.network_depth if depth is None else depth,
            dtype=problem.dtype,
            device=problem.device,
            generator=generator,
        )
        assert problem.agent_share is not None
        return cls(agent_network, problem.n_agents, problem.agent_share)

    @staticmethod
    def supports(problem: Problem) -> str | None:
        """None, or the reason why the problem's states are not those of identical agents."""
        if problem.agent_share is None:
            return f"{problem.name} has no identical agents to share a network; use network dense"
        return None

    def forward(self, t: Time, z: Tensor) -> Tensor:
        """phi(t, z): (batch, n) -> (batch,)."""
        return self.value_and_gradient(t, z)[0]

    def costate(self, t: Time, z: Tensor) -> Tensor:
        """p = grad_z phi(t, z): (batch, n) -> (batch, n), differentiable in z and parameters."""
        p = self.agent_network.costate(self._times(t), self._states(z))
        return p.reshape(z.shape) * self.share

    def value_and_gradient(self, t: Time, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi (batch,), grad_z phi (batch, n) and d phi/dt (batch,), all from one sweep."""
        phi, p, phi_t = self.agent_network.value_and_gradient(self._times(t), self._states(z))
        return (
            phi.view(-1, self.n_agents).sum(1) * self.share,
            p.reshape(z.shape) * self.share,
            phi_t.view(-1, self.n_agents).sum(1) * self.share,
        )

    def _states(self, z: Tensor) -> Tensor:
        return z.reshape(z.shape[0] * self.n_agents, -1)

    def _times(self, t: Time) -> Time:
        if isinstance(t, Tensor) and t.dim() == 1:
            return t.repeat_interleave(self.n_agents)
        return t
