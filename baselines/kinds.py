"""What teaches a gate to choose between two kinds of flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from baselines.extremals import Extremals, flown_beside
from jfbcore._random import draw
from jfbcore.problems import Problem

#: flights beside each known one, and how far, as a share of how far the known ones lie apart:
#: further away its feedback flies dearer than need be, and of two kinds not alike
_BESIDE, _SPREAD = 16, 0.5
#: share of a flight after which an agent stays with the kind that it flies, dearer or not
_PARTED = 0.2
#: how far states lie beside flights after that, as a share of how far all of all flights lie apart
_SHAKE = 0.5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of two kinds of flight, 0 or 1, an agent should be on at a time and state.

    An agent alone takes the cheaper kind. In a swarm, where many that fly alike pay more for their
    interaction than a dearer flight costs, agents differ in what they put up with: `tolerances`
    (n_agents,), the excess of the second kind's cost over the first's, relative, below which an
    agent flies the second. `states` (2, S, n_steps, n) at `times` and `costs` (2, S) are those of
    one agent's flights of both kinds from the same S initial states, in float64 on the CPU.
    """

    tolerances: Tensor
    times: Tensor
    states: Tensor
    costs: Tensor
    #: how far all states of all flights lie apart, (n,)
    apart: Tensor

    @classmethod
    @torch.no_grad()
    def between(
        cls,
        problem: Problem,
        found: Sequence[Extremals],
        tolerances: Tensor,
        generator: torch.Generator,
    ) -> Self:
        """The choice between two kinds of trajectories that were `found` for one agent's `problem`.

        A gate that saw these alone would have to guess, from a few points in many dimensions, where
        the cheaper kind changes. From states between theirs both kinds are flown by the feedback of
        the nearest known flight, which costs no more than a rollout.
        """
        known = found[0].states[:, 0].repeat(_BESIDE, 1)
        apart = found[0].states[:, 0].std(0, correction=0)
        initial = known + _SPREAD * apart * draw(torch.randn, known.shape, generator)
        flights = [flown_beside(problem, kind, initial) for kind in found]
        states, _, costs = (torch.stack(part) for part in zip(*flights, strict=True))
        return cls(
            tolerances=tolerances.to("cpu", torch.float64),
            times=found[0].times,
            states=states,
            costs=costs,
            apart=states.std((0, 1, 2), correction=0),
        )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Times (count,), states (count, n), agents and the kinds that are right there (count,).

        Early states are drawn more often than late ones. Before the kinds have parted a flight is
        of the kind on which its agent should have set out; later it is of any, and stays of it,
        also where others push the agent far away from every known flight.
        """
        _, flights, steps, _ = self.states.shape
        which = torch.randint(flights, (count,), generator=generator)
        agents = torch.randint(len(self.tolerances), (count,), generator=generator)
        when = (steps * draw(torch.rand, (count,), generator).square()).long()
        excess = self.costs[1, which] / self.costs[0, which] - 1.0
        right = (excess < self.tolerances[agents]).long()
        either = torch.randint(2, (count,), generator=generator)
        parted = when >= _PARTED * steps
        kinds = torch.where(parted, either, right)
        states = self.states[kinds, which, when]
        shaken = _SHAKE * parted.unsqueeze(1) * self.apart
        states = states + shaken * draw(torch.randn, states.shape, generator)
        return self.times[when], states, agents, kinds
