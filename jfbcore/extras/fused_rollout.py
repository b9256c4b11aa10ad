"""A rollout as one GPU kernel, and its way back as another: for what `kernels.swarm` serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from jfbcore.extras.network_gradients import parameter_gradients
from jfbcore.extras.stepped_rollout import Grids
from jfbcore.extras.time_step import TimeStep
from jfbcore.kernels.swarm import Flown, FusedSwarm
from jfbcore.policy import HamiltonianPolicy, Policy

if TYPE_CHECKING:
    from jfbcore.extras.compiled_rollout import Grid


@dataclass
class FusedFlight:
    """A `Flight`, and what the kernel has left in memory."""

    flown: Flown
    times: Tensor
    step_length: Tensor
    terminal_cost: Tensor

    @property
    def running_cost(self) -> Tensor:
        """(batch,)."""
        return self.flown.running

    @property
    def final_state(self) -> Tensor:
        """z_n, (batch, n)."""
        return self.flown.final_state

    @property
    def residual(self) -> Tensor:
        """Of the solver's controls, (steps, batch)."""
        return self.flown.residual


class FusedRollout:
    """`Directions` of a policy that `kernels.swarm` serves: nothing is compiled for a number of
    solver steps, a grid or a batch."""

    def __init__(self, policy: Policy) -> None:
        assert isinstance(policy, HamiltonianPolicy)
        self.policy, self.time_step = policy, TimeStep(policy)
        self.swarm, self._grids = FusedSwarm(policy), Grids(policy.problem)

    def run(self, grid: Grid, count: int, states: Tensor) -> FusedFlight:
        """One rollout from `states` (batch, n) with `count` steps of the solver at every time
        step."""
        times, step_length = self._grids(grid.n_steps, states)
        flown = self.swarm.fly(states, times, step_length, count, grid.warm_start)
        terminal = self.policy.problem.terminal_cost(flown.final_state)
        return FusedFlight(flown, times, step_length, terminal)

    def gradients(self, flight: FusedFlight, bars: tuple[Tensor, ...]) -> list[Tensor]:
        """The way back of `flight`: gradients of the parameters."""
        running_bar, terminal_bar, z_bar = bars
        z_bar = z_bar + self.time_step.pull_terminal(flight.final_state, terminal_bar)
        output_bars = self.swarm.pull_back(flight.flown, flight.step_length, z_bar, running_bar)
        states = flight.flown.states
        return parameter_gradients(self.policy, flight.times, states, output_bars)

    def unit(self) -> int:
        """One: no number costs more to begin than another."""
        return 1
