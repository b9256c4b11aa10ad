"""Value networks whose agents share one network, for swarms of identical agents."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from jfbcore import _validate
from jfbcore._random import draw
from jfbcore._time import time_tensor
from jfbcore.extras.gate import Gate, sign
from jfbcore.extras.network_defaults import NetworkScaling, network_defaults
from jfbcore.extras.places import Places
from jfbcore.kernels.saved_sweep import Columns, Cotangents, Layers, Saved
from jfbcore.problems.base import Problem, Time
from jfbcore.value_network import ValueNetwork


class SharedValueNetwork(nn.Module):
    """phi(t, z) = share * sum_i psi(t, z_i), one psi for all agents.

    Prefer it to one dense network for more than a few identical agents: relabelling agents
    relabels their costates, the number of parameters does not depend on the number of agents, and
    every agent gets feedback of full rank on its own state, where a dense network of width w
    spreads rank w + 10 over all of them. What it leaves out is that an agent's costate depends on
    the other agents; where they interact only through a weak cost, that is little. `share` is
    that of one agent's own cost in the total, so that psi has the size of one agent's costs.
    """

    #: numbers psi is told of an agent besides its state, and their standard deviation
    INDEX_DIM: ClassVar[int] = 0
    INDEX_SCALE: ClassVar[float] = 0.0
    #: whether a gate decides between two branches of psi
    GATED: ClassVar[bool] = False
    #: whether agents are numbered by the place that they start at
    PLACED: ClassVar[bool] = False
    #: these numbers, (n_agents, index width)
    indices: Tensor | None

    def __init__(
        self,
        agent_network: ValueNetwork,
        n_agents: int,
        share: float,
        indices: Tensor | None = None,
        gate: Gate | None = None,
        places: Places | None = None,
    ) -> None:
        super().__init__()
        self.agent_network = agent_network
        self.n_agents = _validate.positive_int("n_agents", n_agents)
        self.share = _validate.positive("share", share)
        for name, part, wanted in (("gate", gate, self.GATED), ("places", places, self.PLACED)):
            if (part is not None) != wanted:
                kind = f"be a {name.capitalize()}" if wanted else "be None"
                raise ValueError(f"`{name}` must {kind}, got {part}")
        self.gate, self.places = gate, places
        width = self.told(places) - self.GATED
        shape = (n_agents, 0) if indices is None else tuple(indices.shape)
        if shape != (n_agents, width):
            raise ValueError(
                f"`indices` must be ({n_agents}, {width}), one row for each agent, got {shape}"
            )
        self.register_buffer("indices", indices)

    @classmethod
    def for_problem(
        cls,
        problem: Problem,
        *,
        width: int | None = None,
        depth: int | None = None,
        share: float | None = None,
        units: tuple[float, ...] | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """psi of the problem's width and depth, on its dtype and device.

        Keywords replace what `network_defaults(problem)` says: `share` its `agent_share`, `units`
        its `agent_units`. Raises ValueError with the reason where the problem has no identical
        agents and no `share` is given.
        """
        if share is None and (reason := cls.supports(problem)) is not None:
            raise ValueError(reason)
        defaults, state_dim = network_defaults(problem), problem.state_dim // problem.n_agents
        share = defaults.agent_share if share is None else share
        assert share is not None
        units = defaults.agent_units if units is None else units
        places = cls.common_places(problem)
        if told := cls.told(places):
            units = (*(units or (1.0,) * state_dim), *(1.0,) * told)
        agent_network = ValueNetwork(
            state_dim + told,
            defaults.width if width is None else width,
            defaults.depth if depth is None else depth,
            scaling=None if units is None else NetworkScaling(state=units),
            dtype=problem.dtype,
            device=problem.device,
            generator=generator,
        )
        indices = cls.draw_indices(problem, generator, places)
        gate = cls.draw_gate(problem, generator)
        return cls(agent_network, problem.n_agents, share, indices, gate, places)

    @classmethod
    def told(cls, places: Places | None) -> int:
        """How many numbers psi is told of an agent besides its state."""
        return cls.GATED + (cls.INDEX_DIM if places is None else places.states.shape[1])

    @classmethod
    def common_places(cls, problem: Problem) -> Places | None:
        """The places that agents are assigned to; None where they keep their numbers."""
        return Places.of(problem) if cls.PLACED else None

    @classmethod
    def draw_indices(
        cls, problem: Problem, generator: torch.Generator | None, places: Places | None = None
    ) -> Tensor | None:
        """What psi is told of each agent besides its state, (agents, index width), None for
        nothing; its place where there are `places`. A direct policy may be told the same."""
        if places is not None:
            return cls.INDEX_SCALE * places.indices
        if not cls.INDEX_DIM:
            return None
        indices = cls.INDEX_SCALE * draw(torch.randn, (problem.n_agents, cls.INDEX_DIM), generator)
        return indices.to(dtype=problem.dtype, device=problem.device)

    @classmethod
    def draw_gate(cls, problem: Problem, generator: torch.Generator | None) -> Gate | None:
        """The gate between psi's branches; None where there is one branch. A direct policy may
        have the same."""
        if not cls.GATED:
            return None
        inputs = problem.state_dim // problem.n_agents + cls.INDEX_DIM
        return Gate(inputs, dtype=problem.dtype, device=problem.device, generator=generator)

    @staticmethod
    def supports(problem: Problem) -> str | None:
        """None, or the reason why the problem's states are not those of identical agents."""
        if network_defaults(problem).agent_share is None:
            return f"{problem.name} has no identical agents to share a network; use network dense"
        return None

    def forward(self, t: Time, z: Tensor) -> Tensor:
        """phi(t, z): (batch, n) -> (batch,)."""
        return self.value_and_gradient(t, z)[0]

    def costate(self, t: Time, z: Tensor) -> Tensor:
        """p = grad_z phi(t, z): (batch, n) -> (batch, n), differentiable in z and parameters."""
        p = self.agent_network.costate(self._times(t), self._states(t, z))
        return self._costates(p, z) * self.share

    def agents_costate(self, t: Time, z: Tensor, agents: Tensor, kinds: Tensor) -> Tensor:
        """grad psi(t, z) of single agents: states (rows, n / N) of the agents numbered `agents`
        (rows,) -> (rows, n / N). An agent's costate in the swarm is `share` times its own. `kinds`
        (rows,), 0 or 1, is the branch where there are two; the gate is not asked."""
        told = [z] if self.indices is None else [z, self.indices[agents]]
        if self.gate is not None:
            told.append(sign(kinds > 0, z))
        return self.agent_network.costate(t, torch.cat(told, 1))[:, : z.shape[1]]

    def value_and_gradient(self, t: Time, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi (batch,), grad_z phi (batch, n) and d phi/dt (batch,), all from one sweep."""
        states = self._states(t, z)
        phi, p, phi_t = self.agent_network.value_and_gradient(self._times(t), states)
        phi, phi_t = (x.view(-1, self.n_agents).sum(1) * self.share for x in (phi, phi_t))
        return phi, self._costates(p, z) * self.share, phi_t

    def prepare(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """As `ValueNetwork.prepare`, of psi; where there is a gate, times follow the biases."""
        matrix, table = self.agent_network.prepare(times)
        if self.gate is not None:
            rows = matrix.shape[0]
            table = nn.functional.pad(table[:, :rows], (0, 4 - rows % 4))
            table[:, rows] = times
        return matrix, table

    def prepared_costate(self, matrix: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        """As `ValueNetwork.prepared_costate`."""
        p = self.agent_network.prepared_costate(matrix, bias, self._prepared(matrix, bias, z))
        return self._costates(p, z) * self.share

    def prepared_pull_back(
        self, matrix: Tensor, bias: Tensor, z: Tensor, p_bar: Tensor, onto: Tensor
    ) -> Tensor:
        """As `ValueNetwork.prepared_pull_back`."""
        p_bar, rows = self._states_of(p_bar * self.share), self._states_of(onto)
        states = self._prepared(matrix, bias, z)
        z_bar = self.agent_network.prepared_pull_back(matrix, bias, states, p_bar, rows)
        return self._costates(z_bar, z)

    def layers(self, matrix: Tensor, columns: Columns | None = None) -> Layers:
        """As `ValueNetwork.layers`, of psi."""
        return self.agent_network.layers(matrix, columns)

    def saved_costate(self, layers: Layers, bias: Tensor, z: Tensor) -> tuple[Tensor, Saved]:
        """As `ValueNetwork.saved_costate`; what is saved has a row for each agent."""
        states = self._prepared(layers.matrix, bias, z)
        p, saved = self.agent_network.saved_costate(layers, bias, states)
        return self._costates(p, z) * self.share, saved

    def saved_pull_back(
        self, layers: Layers, saved: Saved, at_step: Tensor, p_bar: Tensor, onto: Tensor
    ) -> tuple[Tensor, Cotangents]:
        """As `ValueNetwork.saved_pull_back`."""
        p_bar, rows = self._states_of(p_bar * self.share), self._states_of(onto)
        z_bar, cotangents = self.agent_network.saved_pull_back(layers, saved, at_step, p_bar, rows)
        return self._costates(z_bar, onto), cotangents

    def saved_gradients(
        self,
        layers: Layers,
        times: Tensor,
        z: Tensor,
        p_bar: Tensor,
        saved: Saved,
        cotangents: Cotangents,
    ) -> dict[str, Tensor]:
        """As `ValueNetwork.saved_gradients`."""
        shape = (z.shape[0], z.shape[1] * self.n_agents, -1)
        each = times.repeat_interleave(z.shape[1])
        states = self._states(each, z.flatten(0, 1)).view(shape)
        p_bar = self._states_of(p_bar.flatten(0, 1) * self.share).view(shape)
        gradients = self.agent_network.saved_gradients(
            layers, times, states, p_bar, saved, cotangents
        )
        return {f"agent_network.{name}": gradient for name, gradient in gradients.items()}

    def _states_of(self, bar: Tensor) -> Tensor:
        """Cotangents of the swarm's costates (batch, n) as those of psi's gradients."""
        rows = bar.reshape(bar.shape[0] * self.n_agents, -1)
        return nn.functional.pad(rows, (0, self.told(self.places)))

    def _states(self, t: Time, z: Tensor) -> Tensor:
        """What psi sees of each agent, (batch N, psi's inputs), at one time or one for each."""
        states = z.reshape(z.shape[0] * self.n_agents, -1)
        if self.indices is None:
            return states
        told = [states, self.indices.repeat(z.shape[0], 1)]
        if self.gate is not None:
            times = time_tensor(self._times(t), z).reshape(-1, 1).expand(len(states), 1)
            told.append(self.gate.branch(times, *told))
        return torch.cat(told, 1)

    def _prepared(self, matrix: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        """`_states` at the time of a row `bias` of what `prepare` makes."""
        t = bias[matrix.shape[0]] if self.gate is not None else 0.0
        return self._states(t, z)

    def _costates(self, p: Tensor, z: Tensor) -> Tensor:
        """psi's gradients (batch N, psi's inputs) as the swarm's, in the shape of `z`."""
        if self.told(self.places):
            p = p[:, : z.shape[1] // self.n_agents]
        return p.reshape(z.shape).contiguous()

    def _times(self, t: Time) -> Time:
        if isinstance(t, Tensor) and t.dim() == 1:
            return t.repeat_interleave(self.n_agents)
        return t


class IndexedValueNetwork(SharedValueNetwork):
    """phi(t, z) = share * sum_i psi(t, z_i, e_i): one psi that is told which agent it serves.

    The e_i are fixed random vectors of `INDEX_DIM` normal numbers with standard deviation
    `INDEX_SCALE`, drawn with the parameters. Prefer it to a shared network where agents have to
    part ways: agents that start almost in the same state can then be sent in different directions.
    psi sees states in the `agent_units` of the problem's defaults. Relabelling agents does change
    their costates.
    """

    INDEX_DIM = 8
    INDEX_SCALE = 2.0


class AssignedValueNetwork(SharedValueNetwork):
    """phi(t, z) = share * sum_i psi(t, z_i, e_i), agents numbered by `places`, e_i the place.

    Prefer it to an indexed network where agents start spread out and have to part ways: a rollout
    begins by assigning the agents to places, so that each goes the way that is the best from where
    it starts; places that lie close together have ways that do. Relabelling agents relabels their
    costates along a rollout. Called by itself the network takes the agents as they are numbered.
    """

    INDEX_SCALE = 2.0
    PLACED = True


class BranchedValueNetwork(IndexedValueNetwork):
    """phi(t, z) = share * sum_i psi(t, z_i, e_i, b_i), b_i = -1 or 1 by a gate at (t, z_i, e_i).

    Prefer it to an indexed network where optima are of two kinds, one here and one there, and known
    ones are at hand for the gate to be fitted to (see `Gate`); a gate that nobody fits is random.
    """

    GATED = True
