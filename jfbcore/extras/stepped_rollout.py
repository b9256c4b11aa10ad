"""A rollout as calls of one compiled time step, without a test of the inner solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from jfbcore.extras.network_gradients import parameter_gradients
from jfbcore.extras.time_step import TimeStep
from jfbcore.extras.untested_step import Prepared, UntestedStep
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems.base import Problem

if TYPE_CHECKING:
    from jfbcore.extras.compiled_rollout import Grid


class Flight(Protocol):
    """What the way there leaves for the way back, and what it says of itself."""

    #: (batch,), (batch,), (batch, n) and (steps, batch)
    running_cost: Tensor
    terminal_cost: Tensor
    final_state: Tensor
    residual: Tensor


class Directions(Protocol):
    """Rolls out with a given number of solver steps, and back; nothing in it waits for a GPU."""

    def run(self, grid: Grid, count: int, states: Tensor) -> Any:
        """One rollout from `states` (batch, n), `count` steps of the solver at every time step: a
        `Flight`."""
        ...

    def gradients(self, flight: Any, bars: tuple[Tensor, ...]) -> list[Tensor]:
        """The way back of `flight`: gradients of the parameters for cotangents of the running cost
        (batch,), the terminal cost (batch,) and the final state (batch, n)."""
        ...

    def unit(self) -> int:
        """Numbers of solver steps should be multiples of this one."""
        ...


@dataclass
class SteppedFlight:
    """A `Flight` with one entry per time step, the final state last."""

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

    @property
    def final_state(self) -> Tensor:
        """z_n, (batch, n)."""
        return self.states[-1]


def _at(prepared: Prepared, i: int) -> Prepared:
    """What was prepared for time step `i`: the matrix, and its row of the biases."""
    return prepared and (prepared[0], prepared[1][i])


class Grids:
    """The time grids of a problem, made once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times (steps,) and step length; every time begins at a multiple of 16 bytes, which
        compiled code wants of its inputs."""
        if n_steps not in self._made:
            h = self._problem.t_final / n_steps
            steps = torch.arange(n_steps, dtype=like.dtype, device=like.device)
            times = (h * steps).unsqueeze(1).expand(-1, 4).contiguous()[:, 0]
            self._made[n_steps] = times, like.new_full((), h)
        return self._made[n_steps]


class SteppedRollout:
    """`Directions` of any policy that can be compiled."""

    def __init__(self, policy: Policy, compiled: Callable[..., Callable[..., Any]]) -> None:
        self.policy = policy
        self.time_step = TimeStep(policy)
        self._body = UntestedStep(self.time_step, compiled)
        self._grids = Grids(policy.problem)

    def run(self, grid: Grid, count: int, states: Tensor) -> SteppedFlight:
        """One rollout from `states` (batch, n), `count` steps of the solver at every time step."""
        times, step_length = self._grids(grid.n_steps, states)
        forward = self._body.forward(count)
        running, start = states.new_zeros(states.shape[0]), None
        prepared: Prepared = None
        if isinstance(self.policy, HamiltonianPolicy):
            prepared = self.policy.value_network.prepare(times)
            if grid.warm_start:
                start = self.policy.problem.initial_control(0.0, states)
        visited, outputs, kept, residuals = [states], list[Tensor](), list[Tensor](), list[Tensor]()
        for i, t in enumerate(times):
            z, running, output, control, flown, residual = forward(
                _at(prepared, i), t, step_length, visited[-1], running, start
            )
            visited.append(z)
            outputs.append(output)
            kept.append(control)
            residuals.append(residual)
            start = flown if grid.warm_start else None
        terminal, residual = self._body.terminal(visited[-1]), torch.stack(residuals)
        return SteppedFlight(
            *(count, times, step_length, prepared, visited, outputs, kept),
            *(running, terminal, residual),
        )

    def gradients(self, flight: SteppedFlight, bars: tuple[Tensor, ...]) -> list[Tensor]:
        """The way back of `flight`: gradients of the parameters."""
        body = self._body
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
        states = torch.stack(flight.states[:-1])
        return parameter_gradients(self.policy, flight.times, states, torch.stack(output_bars))

    def unit(self) -> int:
        """As many as one compiled function holds."""
        return self._body.body
