"""Places that the agents of a swarm are assigned to where they start."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from jfbcore import _validate
from jfbcore.problems.base import Problem

#: swarms that common places are the mean of, the seed that draws them, and rounds at most
_SWARMS, _SEED, _ROUNDS = 64, 20_260_131, 50


class Places(nn.Module):
    """Where the agents of a common swarm start: one state for each of them.

    Identical agents may be numbered as one likes. Which way one should take is decided by where it
    starts among the others, and hardly at all by a number that was drawn with the swarm. Assigned
    to places, as few units away as can be, an agent gets the number of a place, and the number
    says the way (concurrent assignment and planning of trajectories: Turpin, Michael and Kumar,
    IJRR 2014). `states` (N, n / N) of the places; `spread` (n / N,), the units: how far agents lie
    apart by coordinate, 1 where they do not.
    """

    states: Tensor
    spread: Tensor

    def __init__(self, states: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("states", states)
        self.register_buffer("spread", spread)

    @classmethod
    def of(cls, problem: Problem) -> Places:
        """The mean of `problem`'s initial states, agents numbered alike, on its dtype and device.

        Numbering and averaging take turns until no agent changes its number (a barycentre of the
        swarms in the sense of Wasserstein; it is a local optimum). Raises ModuleNotFoundError
        without scipy.
        """
        _validate.instance("problem", problem, Problem, "Bicycle(n_agents=20)")
        generator = torch.Generator().manual_seed(_SEED)
        swarms = problem.sample_initial_states(_SWARMS, generator)
        agents = swarms.view(_SWARMS * problem.n_agents, -1)
        deviation = agents.double().std(0, correction=0)
        # What is the same for all agents differs by rounding.
        apart = deviation > 1e-6 * agents.double().abs().amax(0)
        spread = torch.where(apart, deviation, 1.0).to(agents)
        places = cls(swarms[0].view(problem.n_agents, -1).clone(), spread)
        for _ in range(_ROUNDS):
            mean = places(swarms).view(_SWARMS, *places.states.shape).mean(0)
            if torch.equal(mean, places.states):
                break
            places.states.copy_(mean)
        return places

    @property
    def indices(self) -> Tensor:
        """The places as numbers of order one, (N, n / N): from their mean, in units of `spread`."""
        return (self.states - self.states.mean(0)) / self.spread

    def forward(self, initial_states: Tensor) -> Tensor:
        """`initial_states` (batch, n) with agents numbered by place."""
        agents = initial_states.view(initial_states.shape[0], *self.states.shape)
        order = self.order(initial_states).unsqueeze(2)
        return agents.gather(1, order.expand_as(agents)).view_as(initial_states)

    def order(self, initial_states: Tensor) -> Tensor:
        """Which agent goes to each place, (batch, N), so that the sum of squared distances between
        agents and their places is the least there is."""
        from scipy.optimize import linear_sum_assignment

        agents = initial_states.detach().view(initial_states.shape[0], *self.states.shape)
        # Of |a - b|^2 only the product depends on who goes where.
        products = (agents.to(self.states) / self.spread) @ self.indices.T
        goes_to = [
            linear_sum_assignment(rows, maximize=True)[1]
            for rows in products.double().cpu().numpy()
        ]
        return torch.from_numpy(np.array(goes_to)).argsort(1).to(agents.device)


def places_in(module: nn.Module) -> Places | None:
    """The places in a policy or its network, or None where agents keep their numbers."""
    return next((part for part in module.modules() if isinstance(part, Places)), None)
