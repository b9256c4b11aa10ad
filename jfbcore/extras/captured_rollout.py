"""A rollout as calls of one compiled time step, captured as two CUDA graphs on a GPU.

No tensor travels to the host between the first time step and the last. With a tolerance the inner
solver takes the same number of steps at every time step: the number that a rollout needed, checked
once after each rollout and raised, with the rollout run again, where it was too few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jfbcore.extras.time_step import TimeStep
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import rollout as eager_rollout
from jfbcore.value_network import ValueNetwork

if TYPE_CHECKING:
    from jfbcore.extras.compiled_rollout import Grid

#: the matrix of the network's outer products and its biases, None without a value network
Prepared = tuple[Tensor, Tensor] | None
#: steps of the solver that one compiled function may hold; more are repeated calls
LONGEST_BODY = 16
#: floats of one layer's activations for which parameter gradients are evaluated at once
_CHUNK = 2**24
#: width of a layer that such chunks are sized for
_WIDEST = 128
#: numbers of solver steps tried in turn; few, because each is compiled by itself
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)


@dataclass
class Flight:
    """What the way there leaves for the way back: one entry per time step, the final state last."""

    count: int
    times: Tensor
    step_length: Tensor
    states: list[Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    prepared: Prepared = None
    running_cost: Tensor = field(default_factory=lambda: torch.empty(0))
    terminal_cost: Tensor = field(default_factory=lambda: torch.empty(0))
    residual: Tensor = field(default_factory=lambda: torch.empty(0))
    generation: int = 0

    @property
    def final_state(self) -> Tensor:
        """z_n, (batch, n)."""
        return self.states[-1]

    @property
    def iterations(self) -> Tensor:
        """Steps of the solver, the same at every time step: (1,)."""
        return torch.tensor([self.count])

    def at(self, i: int) -> Prepared:
        """What was prepared for time step `i`: the matrix, and its row of the biases."""
        return self.prepared and (self.prepared[0], self.prepared[1][i])


@dataclass
class _Capture:
    """A rollout and its way back as two CUDA graphs with static inputs and outputs."""

    flight: Flight
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    bars: tuple[Tensor, ...]
    gradients: list[Tensor]
    #: counts the rollouts that wrote these buffers
    generation: int = 0


class CapturedRollout:
    """The engine of `CompiledRollout` on a GPU; with `capture` False the same calls, one by one."""

    def __init__(
        self, policy: Policy, compiled: Callable[..., Callable[..., Any]], capture: bool
    ) -> None:
        self.policy, self.capture = policy, capture
        self.time_step = TimeStep(policy)
        self._compiled = compiled
        self._bodies: dict[int, _Body] = {}
        self._captures: dict[tuple[Grid, int], _Capture] = {}
        self._counts: dict[Grid, int] = {}
        self._grids: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def fly(self, grid: Grid, states: Tensor) -> Flight:
        """Roll out from `states` (batch, n), with enough steps of the solver."""
        solver = self.policy.solver if isinstance(self.policy, HamiltonianPolicy) else None
        if grid not in self._counts:
            self._counts[grid] = self._first_count(grid, states)
        while True:
            count = self._counts[grid]
            flight = (
                self._replay(grid, count, states) if self.capture else self.run(grid, count, states)
            )
            if solver is None or solver.tolerance is None or count >= solver.max_iterations:
                return flight
            # One number to the host per rollout. A NaN asks for no further iterations.
            if not bool((flight.residual > solver.tolerance).any()):
                return flight
            self._counts[grid] = _next_count(count, solver.max_iterations)

    @torch.no_grad()
    def pull_back(self, grid: Grid, flown: Flight, bars: tuple[Tensor, ...]) -> list[Tensor]:
        """Gradients of the policy's parameters."""
        if not self.capture:
            return self.gradients(flown, bars)
        captured = self._captures[grid, flown.count]
        if captured.generation != flown.generation:
            raise RuntimeError(
                "a later rollout has overwritten this captured one; call backward() before the "
                "next rollout, or use CompiledRollout(policy, capture=False)"
            )
        for static, given in zip(captured.bars, bars, strict=True):
            static.copy_(given)
        captured.backward.replay()
        # Copies, in one kernel: the next replay overwrites the static ones.
        return list(torch._foreach_mul(captured.gradients, 1.0))

    def run(self, grid: Grid, count: int, states: Tensor) -> Flight:
        """One rollout with `count` steps of the solver at every time step."""
        body, times, step_length = self._body(count), *self._times(grid.n_steps, states)
        flight = Flight(count, times, step_length, [states])
        running, start = states.new_zeros(states.shape[0]), None
        if isinstance(self.policy, HamiltonianPolicy):
            flight.prepared = self.policy.value_network.prepare(times)
            if grid.warm_start:
                start = self.policy.problem.initial_control(0.0, states)
        residuals = []
        for i, t in enumerate(times):
            z, running, output, kept, flown, residual = body.forward(
                flight.at(i), t, step_length, flight.states[-1], running, start
            )
            flight.states.append(z)
            flight.outputs.append(output)
            flight.kept.append(kept)
            residuals.append(residual)
            start = flown if grid.warm_start else None
        flight.running_cost = running
        flight.terminal_cost = body.terminal(z)
        flight.residual = torch.stack(residuals)
        return flight

    def gradients(self, flight: Flight, bars: tuple[Tensor, ...]) -> list[Tensor]:
        """The way back of `flight`: gradients of the parameters."""
        body = self._body(flight.count)
        running_bar, terminal_bar, z_bar = bars
        z_bar = z_bar + body.pull_terminal(flight.final_state, terminal_bar)
        n_steps = len(flight.outputs)
        output_bars: list[Tensor] = [z_bar] * n_steps
        for i in reversed(range(n_steps)):
            z_bar, output_bars[i] = body.backward(
                flight.at(i),
                flight.times[i],
                flight.step_length,
                flight.states[i],
                flight.outputs[i],
                flight.kept[i],
                z_bar,
                running_bar,
            )
        return parameter_gradients(self.policy, flight.times, flight.states, output_bars)

    def _first_count(self, grid: Grid, states: Tensor) -> int:
        """Steps of the solver that one rollout needs, from one that tests as it goes."""
        if not isinstance(self.policy, HamiltonianPolicy):
            return 0
        solver = self.policy.solver
        if solver.tolerance is None:
            return solver.max_iterations
        flown = eager_rollout(self.policy, states, n_steps=grid.n_steps, warm_start=grid.warm_start)
        summary = flown.inner.summary()
        assert summary is not None
        need = max(int(summary["iterations"]["max"]), solver.fewest_repeats - 1)
        return _next_count(need, solver.max_iterations)

    def _times(self, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times (steps,) and step length, made once; every time begins at a multiple of 16 bytes,
        which compiled code wants of its inputs."""
        if n_steps not in self._grids:
            h = self.policy.problem.t_final / n_steps
            steps = torch.arange(n_steps, dtype=like.dtype, device=like.device)
            times = (h * steps).unsqueeze(1).expand(-1, 4).contiguous()[:, 0]
            self._grids[n_steps] = times, like.new_full((), h)
        return self._grids[n_steps]

    def _body(self, count: int) -> _Body:
        if count not in self._bodies:
            self._bodies[count] = _Body(self.time_step, count, self._compiled)
        return self._bodies[count]

    def _replay(self, grid: Grid, count: int, states: Tensor) -> Flight:
        name = (grid, count)
        if name not in self._captures:
            self._captures[name] = self._record(grid, count, states)
        captured = self._captures[name]
        captured.flight.states[0].copy_(states)
        captured.forward.replay()
        captured.generation += 1
        static = captured.flight
        return replace(
            static,
            states=[*static.states[:-1], static.final_state.clone()],
            running_cost=static.running_cost.clone(),
            terminal_cost=static.terminal_cost.clone(),
            residual=static.residual.clone(),
            generation=captured.generation,
        )

    def _record(self, grid: Grid, count: int, states: Tensor) -> _Capture:
        """Compile and warm up on a side stream, then capture both directions."""
        static = states.clone()
        ones = torch.ones_like(states[:, 0])
        bars = (ones, ones.clone(), torch.zeros_like(states))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # The whole rollout: nothing may be left to compile while the stream is captured.
        with torch.cuda.stream(side):
            for _ in range(2):
                self.gradients(self.run(grid, count, static), bars)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=pool):
            flight = self.run(grid, count, static)
        with torch.cuda.graph(backward, pool=pool):
            gradients = self.gradients(flight, bars)
        return _Capture(flight, forward, backward, bars, gradients)


class _Body:
    """The functions of one time step for a fixed number of solver steps."""

    def __init__(
        self, time_step: TimeStep, count: int, compiled: Callable[..., Callable[..., Any]]
    ) -> None:
        self._time_step, self._count = time_step, count
        policy = time_step.policy
        tracked = isinstance(policy, HamiltonianPolicy) and policy.gradient.tracks_from_start
        if count > LONGEST_BODY and not tracked:
            self._first, self._more = compiled(self._begin), compiled(self._repeat)
            self._finish = compiled(self._end)
            self.forward = self._long_forward
        else:
            self.forward = compiled(self._short_forward)
        self.backward = compiled(self._backward)
        self.terminal = compiled(time_step.problem.terminal_cost)
        self.pull_terminal = compiled(time_step.pull_terminal)

    def _says(self, prepared: Prepared, t: Tensor, z: Tensor) -> Tensor:
        """What the network says: the costate, or the control of a policy without inner problem."""
        policy = self._time_step.policy
        if isinstance(policy, HamiltonianPolicy):
            assert prepared is not None
            return policy.value_network.prepared_costate(*prepared, z)
        return policy(t, z).control

    def _short_forward(self, prepared, t, h, z, running, start):
        time_step = self._time_step
        output = self._says(prepared, t, z)
        if isinstance(time_step.policy, HamiltonianPolicy):
            kept, residual, _ = time_step.repeat(t, z, output, start, self._count)
        else:
            kept, residual = output, z.new_zeros(z.shape[0])
        z_next, cost, flown = time_step.fly(t, h, z, output, kept)
        return z_next, running + cost, output, kept, flown, residual

    def _long_forward(self, prepared, t, h, z, running, start):
        output, control = self._first(prepared, t, z, start)
        for _ in range(self._count // LONGEST_BODY):
            control = self._more(t, z, output, control)
        z_next, running, flown, residual = self._finish(t, h, z, running, output, control)
        return z_next, running, output, control, flown, residual

    def _begin(self, prepared, t, z, start):
        output = self._says(prepared, t, z)
        rest = self._count % LONGEST_BODY
        return output, self._time_step.repeat(t, z, output, start, rest)[2]

    def _repeat(self, t, z, output, control):
        return self._time_step.repeat(t, z, output, control, LONGEST_BODY)[2]

    def _end(self, t, h, z, running, output, control):
        time_step = self._time_step
        residual = time_step.bind(t, z, output).residual(control)
        z_next, cost, flown = time_step.fly(t, h, z, output, control)
        return z_next, running + cost, flown, residual

    def _backward(self, prepared, t, h, z, output, kept, z_bar, running_bar):
        time_step = self._time_step
        onto, output_bar = time_step.pull_back(t, h, z, output, kept, z_bar, running_bar)
        policy = time_step.policy
        if isinstance(policy, HamiltonianPolicy):
            assert prepared is not None
            network = policy.value_network
            matrix, bias = prepared
            z_bar = network.prepared_pull_back(matrix, bias, z, output_bar, onto)
            return z_bar, output_bar
        return time_step.pull_network(t, z, output_bar, onto), output_bar


def parameter_gradients(
    policy: Policy, times: Tensor, states: Sequence[Tensor], output_bars: Sequence[Tensor]
) -> list[Tensor]:
    """The network's parameter gradients for the cotangents of its outputs at all time steps."""
    batch, width = states[0].shape
    dense = isinstance(policy, HamiltonianPolicy) and isinstance(policy.value_network, ValueNetwork)
    floats = max(width, _WIDEST) if dense else policy.problem.n_agents * _WIDEST
    together = max(1, _CHUNK // (batch * floats))
    signal = _Signal(policy)
    parameters = {name: p for name, p in signal.named_parameters() if p.requires_grad}
    totals = [torch.zeros_like(p) for p in parameters.values()]
    for first in range(0, len(times), together):
        part = slice(first, min(first + together, len(times)))
        t = times[part].unsqueeze(1).expand(-1, batch).reshape(-1)
        z, bars = torch.cat(list(states[part])), torch.cat(list(output_bars[part]))
        with torch.enable_grad():
            # Leaves of their own: the graph nodes of the parameters belong to the stream they were
            # made on, which a capture must not wait for.
            leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
            output = torch.func.functional_call(signal, leaves, (t, z))
            gradients = torch.autograd.grad(output, list(leaves.values()), bars, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)
    return totals


class _Signal(nn.Module):
    """What the network of `policy` says, as a module: (rows,), (rows, n) to (rows, n or m)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if isinstance(self.policy, HamiltonianPolicy):
            return self.policy.value_network.costate(t, z)
        return self.policy(t, z).control


def _next_count(count: int, most: int) -> int:
    """The least number of the ladder above `count`, at most `most`."""
    above = (step for step in _LADDER if step > count)
    return min(next(above, most), most)
