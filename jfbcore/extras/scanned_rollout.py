"""A rollout and its way back as two loops of compiled code, for processors.

Each direction is one compiled function whose loop over the time steps runs inside it, so that a
training step enters compiled code twice and not twice at every time step. The inner solver tests
as it goes, at every time step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from jfbcore.extras.compiled_library import Library, libraries
from jfbcore.extras.network_gradients import parameter_gradients
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.extras.time_step import TimeStep
from jfbcore.kernels import native
from jfbcore.kernels.saved_sweep import Columns, Layers, narrow, take, widen
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.value_network import ValueNetwork

if TYPE_CHECKING:
    from jfbcore.extras.compiled_rollout import Grid

#: arguments of the loop there
_There = tuple[Layers | None, Tensor, Tensor, Tensor, Tensor]


@dataclass
class Scanned:
    """What the way there leaves for the way back: `kept` is stacked over the time steps."""

    layers: Layers | None
    times: Tensor
    step_length: Tensor
    final_state: Tensor
    running_cost: Tensor
    terminal_cost: Tensor
    residual: Tensor
    iterations: Tensor
    kept: list[Tensor]


class ScannedRollout:
    """The engine of `CompiledRollout` on a processor."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.time_step = policy, TimeStep(policy)
        self.columns = _columns(policy)
        #: both loops, by whether starts are warm and the batch
        self._loops: dict[tuple[bool, int], tuple[Library, Library]] = {}

    @torch.no_grad()
    def fly(self, grid: Grid, states: Tensor) -> Scanned:
        """Roll out from `states` (batch, n)."""
        native.load()  # with the first rollout, whose seconds are those of all that is compiled
        h = self.policy.problem.t_final / grid.n_steps
        times = h * torch.arange(grid.n_steps, dtype=states.dtype)
        layers, table = None, times
        if isinstance(self.policy, HamiltonianPolicy):
            network = self.policy.value_network
            matrix, table = network.prepare(times)
            gated = isinstance(network, SharedValueNetwork) and network.gate is not None
            table = table[:, : matrix.shape[0] + gated].contiguous()
            # Inputs of what is compiled, which would otherwise find the same parameters twice.
            layers = network.layers(matrix, self.columns)
        step_length = torch.tensor(h, dtype=states.dtype)
        arguments = layers, times, table, step_length, states
        there, _ = self._built(grid, arguments)
        final, running, terminal, residual, iterations, *kept = there(*arguments)
        return Scanned(
            layers, times, step_length, final, running, terminal, residual, iterations, kept
        )

    @torch.no_grad()
    def pull_back(
        self, grid: Grid, flown: Scanned, bars: tuple[Tensor, ...]
    ) -> list[Tensor | None]:
        """Gradients of the policy's parameters."""
        _, back = self._loops[grid.warm_start, grid.shape[0]]
        results = back(
            flown.layers, flown.times, flown.step_length, flown.final_state, flown.kept, *bars
        )
        if not isinstance(self.policy, HamiltonianPolicy):
            found = parameter_gradients(self.policy, flown.times, flown.kept[0], results)
            return list(found)
        names = [
            name for name, p in self.policy.value_network.named_parameters() if p.requires_grad
        ]
        return [results.get(name) for name in names]

    def _built(self, grid: Grid, arguments: _There) -> tuple[Library, Library]:
        """Both loops for a grid, built where that was not done before."""
        name = grid.warm_start, grid.shape[0]
        if name in self._loops:
            return self._loops[name]
        there, batch = functools.partial(self._there, grid.warm_start), grid.shape[0]
        layers, times, table, h, states = arguments
        # One time step shows what all of them leave.
        carry = self._carry(grid.warm_start, times[0], states)
        _, (_, _, *left) = self._step(layers, h, carry, [times[0], table[0]])
        kept = [x.new_empty(times.shape[0], *x.shape) for x in left]
        bars = [states.new_empty(batch), states.new_empty(batch)]
        example = (layers, times, h, states, kept, *bars, torch.empty_like(states))
        built = libraries(
            self.policy,
            {
                "there": (there, arguments, [times, table]),
                "back": (self._back, example, [times, *kept]),
            },
        )
        return self._loops.setdefault(name, (built["there"], built["back"]))

    def _carry(self, warm_start: bool, t: Tensor, states: Tensor) -> list[Tensor]:
        """What the first time step finds: state, running cost, the control to start from."""
        carry = [states.clone(), states.new_zeros(states.shape[0])]
        if warm_start:
            carry.append(self.policy.problem.initial_control(t, states).clone())
        return carry

    def _step(
        self, layers: Layers | None, h: Tensor, carry: list[Tensor], at: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One time step there: what the next one finds, and residual, iterations, what is kept."""
        policy, time_step = self.policy, self.time_step
        z, running, *start = carry
        t, bias = at
        if not isinstance(policy, HamiltonianPolicy):
            control = policy(t, z).control
            cost, *cost_gradient = time_step.cost_gradient(t, h, z, control)
            z_next = z + h * policy.problem.dynamics(t, z, control)
            nothing = torch.zeros_like(running), torch.zeros((), dtype=torch.int64)
            rest = [*nothing, z.clone(), control.clone(), *cost_gradient]
            return [z_next, running + cost, *(x.clone() for x in start)], rest
        assert layers is not None
        costates, saved = policy.value_network.saved_costate(layers, bias, z)
        p = widen(costates, self.columns)
        solution, control = time_step.solve(t, z, p, start[0] if start else None)
        flown = time_step.control(t, z, p, control)
        cost, cost_z, cost_u = time_step.cost_gradient(t, h, z, flown)
        z_next = z + h * policy.problem.dynamics(t, z, flown)
        count = _as_tensor(solution.iterations)
        kept = [z.clone(), costates.clone(), control.clone(), cost_z, cost_u, *saved]
        carried = [z_next, running + cost, *([flown.clone()] if start else [])]
        return carried, [solution.residual.clone(), count, *kept]

    def _there(
        self,
        warm_start: bool,
        layers: Layers | None,
        times: Tensor,
        table: Tensor,
        h: Tensor,
        states: Tensor,
    ) -> list[Tensor]:
        carry = self._carry(warm_start, times[0], states)
        step = functools.partial(self._step, layers, h)
        (final, running, *_), (residual, iterations, *kept) = scan(step, carry, [times, table])
        terminal = self.policy.problem.terminal_cost(final)
        return [final, running, terminal, residual, iterations, *kept]

    def _back(
        self,
        layers: Layers | None,
        times: Tensor,
        h: Tensor,
        final: Tensor,
        kept: list[Tensor],
        running_bar: Tensor,
        terminal_bar: Tensor,
        z_bar: Tensor,
    ) -> Any:
        policy, time_step, columns = self.policy, self.time_step, self.columns
        z_bar = z_bar + time_step.pull_terminal(final, terminal_bar)
        # Backwards by index: a reversed scan would copy all that was kept.
        backwards = torch.arange(times.shape[0] - 1, -1, -1)
        if not isinstance(policy, HamiltonianPolicy):

            def through(carry: list[Tensor], i: Tensor) -> tuple[list[Tensor], Tensor]:
                t, z, control, cost_z, cost_u = (take(x, i) for x in (times, *kept))
                onto, bar = time_step.pull_back(
                    t, h, z, control, control, carry[0], running_bar, (cost_z, cost_u)
                )
                return [time_step.pull_network(t, z, bar, onto)], bar.clone()

            return scan(through, [z_bar], backwards)[1].flip(0)
        assert layers is not None
        sizes, network = layers, policy.value_network
        states, costates, controls, *cost_gradients = kept[:5]
        saved = kept[5:]

        def body(carry: list[Tensor], i: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            t, z, p = take(times, i), take(states, i), widen(take(costates, i), columns)
            control = take(controls, i)
            cost_z, cost_u = (take(x, i) for x in cost_gradients)
            onto, p_bar = time_step.pull_back(
                t, h, z, p, control, carry[0], running_bar, (cost_z, cost_u)
            )
            p_bar = narrow(p_bar, columns)
            following, cotangents = network.saved_pull_back(sizes, saved, i, p_bar, onto)
            return [following], [p_bar.clone(), *cotangents]

        _, (p_bar, *cotangents) = scan(body, [z_bar], backwards)
        return network.saved_gradients(sizes, times, states, p_bar, saved, cotangents)


def _columns(policy: Policy) -> Columns | None:
    """The costates that reach a control, where the network can leave out the others."""
    problem = policy.problem
    network = policy.value_network if isinstance(policy, HamiltonianPolicy) else None
    whole = not isinstance(network, ValueNetwork) or network.scaling is not None
    if whole or problem.steered is None:
        return None
    each = problem.state_dim // problem.n_agents
    first, stop, _ = problem.steered.indices(each)
    return each, first, stop


def _as_tensor(count: int | Tensor) -> Tensor:
    if isinstance(count, Tensor):
        return count.clone()
    return torch.full((), count, dtype=torch.int64)
