"""A rollout as calls of one compiled time step, captured as two CUDA graphs on a GPU.

No tensor travels to the host between the first time step and the last. With a tolerance the inner
solver takes the same number of steps at every time step: the number that a rollout needed, checked
once after each rollout and raised, with the rollout run again, where it was too few. Where more
steps do not help, because rounding keeps the residual above the tolerance, an eager rollout says so
and how far one gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jfbcore.extras.network_gradients import parameter_gradients
from jfbcore.extras.time_step import TimeStep
from jfbcore.extras.untested_step import Prepared, UntestedStep
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import rollout as eager_rollout

if TYPE_CHECKING:
    from jfbcore.extras.compiled_rollout import Grid

#: numbers of solver steps tried in turn; few, because each is compiled by itself
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)
#: how many times the steps needed may be taken where that spares compiling
_WASTE = 3


@dataclass
class Flight:
    """What the way there leaves for the way back: one entry per time step, the final state last."""

    count: int
    times: Tensor
    step_length: Tensor
    prepared: Prepared
    states: list[Tensor]
    outputs: list[Tensor]
    kept: list[Tensor]
    running_cost: Tensor
    terminal_cost: Tensor
    residual: Tensor
    generation: int = 0

    @property
    def final_state(self) -> Tensor:
        """z_n, (batch, n)."""
        return self.states[-1]

    @property
    def iterations(self) -> Tensor:
        """Steps of the solver, the same at every time step: (1,)."""
        return torch.tensor([self.count])


def _at(prepared: Prepared, i: int) -> Prepared:
    """What was prepared for time step `i`: the matrix, and its row of the biases."""
    return prepared and (prepared[0], prepared[1][i])


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
        self._bodies: dict[int, UntestedStep] = {}
        self._captures: dict[tuple[Grid, int], _Capture] = {}
        self._counts: dict[Grid, int] = {}
        #: residuals above the tolerance that more steps did not lower
        self._reachable: dict[Grid, float] = {}
        self._grids: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def fly(self, grid: Grid, states: Tensor) -> Flight:
        """Roll out from `states` (batch, n), with enough steps of the solver."""
        solver = self.policy.solver if isinstance(self.policy, HamiltonianPolicy) else None
        if grid not in self._counts:
            self._counts[grid] = self._first_count(grid, states)
        raised = recounted = False
        while True:
            count = self._counts[grid]
            flight = (
                self._replay(grid, count, states) if self.capture else self.run(grid, count, states)
            )
            if solver is None or solver.tolerance is None or count >= solver.max_iterations:
                return flight
            # One number to the host per rollout. A NaN asks for no further iterations.
            if not bool((flight.residual > solver.tolerance).any()):
                self._reachable.pop(grid, None)
                return flight
            enough = self._reachable.get(grid, solver.tolerance)
            if recounted or not bool((flight.residual > enough).any()):
                return flight
            if raised:
                recounted = True
                self._counts[grid] = self._first_count(grid, states)
            else:
                raised = True
                self._counts[grid] = self._count_above(count, solver.max_iterations)

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
        running, start = states.new_zeros(states.shape[0]), None
        prepared: Prepared = None
        if isinstance(self.policy, HamiltonianPolicy):
            prepared = self.policy.value_network.prepare(times)
            if grid.warm_start:
                start = self.policy.problem.initial_control(0.0, states)
        visited, outputs, kept, residuals = [states], list[Tensor](), list[Tensor](), list[Tensor]()
        for i, t in enumerate(times):
            z, running, output, control, flown, residual = body.forward(
                _at(prepared, i), t, step_length, visited[-1], running, start
            )
            visited.append(z)
            outputs.append(output)
            kept.append(control)
            residuals.append(residual)
            start = flown if grid.warm_start else None
        terminal, residual = body.terminal(visited[-1]), torch.stack(residuals)
        return Flight(
            *(count, times, step_length, prepared, visited, outputs, kept),
            *(running, terminal, residual),
        )

    def gradients(self, flight: Flight, bars: tuple[Tensor, ...]) -> list[Tensor]:
        """The way back of `flight`: gradients of the parameters."""
        body = self._body(flight.count)
        running_bar, terminal_bar, z_bar = bars
        z_bar = z_bar + body.pull_terminal(flight.final_state, terminal_bar)
        n_steps = len(flight.outputs)
        output_bars: list[Tensor] = [z_bar] * n_steps
        for i in reversed(range(n_steps)):
            z_bar, output_bars[i] = body.backward(
                _at(flight.prepared, i),
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
        reached = summary["residual"]["max"]
        if solver.tolerance < reached < math.inf:
            # Twice, because rounding varies from one rollout to the next.
            self._reachable[grid] = 2.0 * reached
        need = max(int(summary["iterations"]["max"]), solver.fewest_repeats - 1)
        return self._count_above(need, solver.max_iterations)

    def _count_above(self, need: int, most: int) -> int:
        """A number of steps above `need`, at most `most`: one that is compiled already where that
        is not more than a few times too many, because compiling takes as long as many rollouts."""
        least = min(next((step for step in _LADDER if step > need), most), most)
        compiled = [count for count in self._bodies if least <= count <= _WASTE * least]
        return min(compiled, default=least)

    def _times(self, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times (steps,) and step length, made once; every time begins at a multiple of 16 bytes,
        which compiled code wants of its inputs."""
        if n_steps not in self._grids:
            h = self.policy.problem.t_final / n_steps
            steps = torch.arange(n_steps, dtype=like.dtype, device=like.device)
            times = (h * steps).unsqueeze(1).expand(-1, 4).contiguous()[:, 0]
            self._grids[n_steps] = times, like.new_full((), h)
        return self._grids[n_steps]

    def _body(self, count: int) -> UntestedStep:
        if count not in self._bodies:
            self._bodies[count] = UntestedStep(self.time_step, count, self._compiled)
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
