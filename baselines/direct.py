"""A network that outputs the control itself: no Hamiltonian, no inner problem."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore._time import Time, time_tensor
from jfbcore.checks import check_problem
from jfbcore.extras.fully_connected import fully_connected
from jfbcore.extras.gate import sign
from jfbcore.extras.network_defaults import network_defaults
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.policy import Decision, Policy
from jfbcore.problems import Consumption, Problem
from jfbcore.value_network import ValueNetwork


class DirectPolicy(Policy):
    """u(t, z) = P(a fully connected network of (z, t)), trained by ordinary backpropagation.

    The width and depth are the value network's, so that parameter counts compare, and so is its
    kind: with `network` SharedValueNetwork each agent's control comes from its own state, by one
    network for all agents; with IndexedValueNetwork that network is also told which agent it
    serves, with AssignedValueNetwork which place the agent starts at. Admissible by construction:
    the problem's own projection, and for consumption an excess above habit that is the nominal one
    times exp of the output. `outputs`: components of `output`, for what takes it for something else
    than a control. Raises ValueError where a shared network has no identical agents to serve.
    """

    #: what the network is told of each agent besides its state, (agents, index width), and the
    #: units it sees states in; None for nothing and for states as they are
    indices: Tensor | None
    units: Tensor | None

    def __init__(
        self,
        problem: Problem,
        *,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
        network: type[ValueNetwork] | type[SharedValueNetwork] = ValueNetwork,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        check_problem(problem)
        self.problem = problem
        defaults = network_defaults(problem)
        width = defaults.width if width is None else _validate.positive_int("width", width)
        depth = defaults.depth if depth is None else _validate.positive_int("depth", depth)
        shared = network if issubclass(network, SharedValueNetwork) else None
        if shared is not None and (reason := shared.supports(problem)) is not None:
            raise ValueError(reason)
        self._arguments = {"width": width, "depth": depth, "network": network, "outputs": outputs}
        #: whether all agents have one network, which is then evaluated as often for one sample
        self.shared = shared is not None
        self._served = 1 if shared is None else problem.n_agents
        self.places = None if shared is None else shared.common_places(problem)
        told = 0 if shared is None else shared.told(self.places)
        n_inputs = problem.state_dim // self._served + told + 1
        n_outputs = problem.control_dim if outputs is None else outputs
        sizes = [n_inputs, *[width] * depth, n_outputs // self._served]
        self.network = fully_connected(
            sizes, dtype=problem.dtype, device=problem.device, generator=generator
        )
        indices = None if shared is None else shared.draw_indices(problem, generator, self.places)
        self.register_buffer("indices", indices)
        self.gate = None if shared is None else shared.draw_gate(problem, generator)
        self.register_buffer("units", None, persistent=False)
        if indices is not None and defaults.agent_units is not None:
            self.units = indices.new_tensor(defaults.agent_units)
        with torch.no_grad():
            # Start near zero output, where every problem's costs are finite.
            for parameter in self.network[-1].parameters():
                parameter.mul_(0.01)

    def constructor_arguments(self) -> dict[str, Any]:
        """What a saved policy is built again from."""
        return {"problem": self.problem, **self._arguments}

    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        """The network's control (batch, m) at time `t` and states `z` (batch, n)."""
        return Decision(self._admissible(t, z, self.output(t, z)))

    def output(self, t: Time, z: Tensor) -> Tensor:
        """What the network puts out, (batch, outputs), before it is made an admissible control."""
        rows = z.shape[0] * self._served
        # One time for all samples or one for each; a sample's agents share it.
        time = time_tensor(t, z).reshape(-1, 1, 1)
        time = time.expand(z.shape[0], self._served, 1).reshape(rows, 1)
        indices = None if self.indices is None else self.indices.repeat(z.shape[0], 1)
        return self._evaluated(time, z.reshape(rows, -1), indices).reshape(z.shape[0], -1)

    def agents_output(self, t: Tensor, z: Tensor, agents: Tensor, kinds: Tensor) -> Tensor:
        """`output` of single agents that share a network: (rows,) times, states (rows, n / N) of
        the agents numbered `agents` (rows,) -> (rows, outputs / N). `kinds` as a shared value
        network has them."""
        indices = None if self.indices is None else self.indices[agents]
        return self._evaluated(t.unsqueeze(1), z, indices, kinds)

    def _evaluated(
        self, time: Tensor, states: Tensor, indices: Tensor | None, kinds: Tensor | None = None
    ) -> Tensor:
        """The network at times (rows, 1), states (rows, ·) and what else it is told."""
        parts = [states if self.units is None else states / self.units]
        if indices is not None:
            parts.append(indices)
            if kinds is not None and self.gate is not None:
                parts.append(sign(kinds > 0, states))
            elif self.gate is not None:
                parts.append(self.gate.branch(time, states, indices))
        parts.append(time)
        output: Tensor = self.network(torch.cat(parts, 1))
        return output

    def _admissible(self, t: Time, z: Tensor, output: Tensor) -> Tensor:
        problem = self.problem
        if isinstance(problem, Consumption):
            nominal = problem.nominal_excess
            least, most = (math.log(x / nominal) for x in (problem.min_excess, problem.max_excess))
            return z[:, 1:] + nominal * output.clamp(least, most).exp()
        # The projection does not depend on the costate.
        return problem.hamiltonian(t, z, torch.zeros_like(z)).project(output)
