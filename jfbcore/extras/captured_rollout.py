"""Rollouts without a test of the inner solver, captured as two CUDA graphs on a GPU.

No tensor travels to the host between the first time step and the last. With a tolerance the inner
solver takes the same number of steps at every time step: the number that a rollout needed, checked
once after each rollout and raised, with the rollout run again, where it was too few. Where more
steps do not help, because rounding keeps the residual above the tolerance, an eager rollout says so
and how far one gets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jfbcore.extras.stepped_rollout import Directions
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import rollout as eager_rollout

if TYPE_CHECKING:
    from jfbcore.extras.compiled_rollout import Grid

#: numbers of solver steps tried in turn, in units of the directions' own; few, because a rollout is
#: captured anew for each
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)


@dataclass
class Flight:
    """A rollout of `count` steps of the solver: what it says, and what `directions` keep of it."""

    count: int
    kept: Any
    running_cost: Tensor
    terminal_cost: Tensor
    final_state: Tensor
    residual: Tensor
    #: the largest residual
    worst: Tensor
    generation: int = 0

    @property
    def iterations(self) -> Tensor:
        """Steps of the solver, the same at every time step: (1,)."""
        return torch.tensor([self.count])


@dataclass
class _Capture:
    """A rollout and its way back as two CUDA graphs with static inputs and outputs."""

    states: Tensor
    kept: Any
    worst: Tensor
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    bars: tuple[Tensor, ...]
    gradients: list[Tensor]
    #: counts the rollouts that wrote these buffers
    generation: int = 0


class CapturedRollout:
    """The engine of `CompiledRollout` on a GPU; with `capture` False the same calls, one by one."""

    def __init__(self, policy: Policy, directions: Directions, capture: bool) -> None:
        self.policy, self.directions, self.capture = policy, directions, capture
        self._captures: dict[tuple[Grid, int], _Capture] = {}
        self._counts: dict[Grid, int] = {}
        #: residuals above the tolerance that more steps did not lower
        self._reachable: dict[Grid, float] = {}

    @torch.no_grad()
    def fly(self, grid: Grid, states: Tensor) -> Flight:
        """Roll out from `states` (batch, n), with enough steps of the solver."""
        solver = self.policy.solver if isinstance(self.policy, HamiltonianPolicy) else None
        if grid not in self._counts:
            self._counts[grid] = self._first_count(grid, states)
        raised = recounted = False
        while True:
            count = self._counts[grid]
            flight = self._fly(grid, count, states)
            if solver is None or solver.tolerance is None or count >= solver.max_iterations:
                return flight
            # One number to the host per rollout. A NaN asks for no further iterations.
            worst = float(flight.worst)
            if not worst > solver.tolerance:
                self._reachable.pop(grid, None)
                return flight
            if recounted or not worst > self._reachable.get(grid, solver.tolerance):
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
            return self.directions.gradients(flown.kept, bars)
        captured = self._captures[grid, flown.count]
        if captured.generation != flown.generation:
            raise RuntimeError(
                "a later rollout has overwritten this captured one; call backward() before the "
                "next rollout, or use CompiledRollout(policy, capture=False)"
            )
        torch._foreach_copy_(captured.bars, bars)
        captured.backward.replay()
        return _copies(captured.gradients)

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
        """A number of steps above `need`, at most `most`."""
        unit = self.directions.unit()
        return min(next((step * unit for step in _LADDER if step * unit > need), most), most)

    def _fly(self, grid: Grid, count: int, states: Tensor) -> Flight:
        if not self.capture:
            kept, generation = self.directions.run(grid, count, states), 0
            worst = kept.residual.amax()
        else:
            name = (grid, count)
            if name not in self._captures:
                self._captures[name] = self._record(grid, count, states)
            captured = self._captures[name]
            captured.states.copy_(states)
            captured.forward.replay()
            captured.generation += 1
            kept, generation, worst = captured.kept, captured.generation, captured.worst
        running, terminal, final, residual = _copies(
            [kept.running_cost, kept.terminal_cost, kept.final_state, kept.residual]
        )
        return Flight(count, kept, running, terminal, final, residual, worst, generation)

    def _record(self, grid: Grid, count: int, states: Tensor) -> _Capture:
        """Compile and warm up on a side stream, then capture both directions."""
        static = states.clone()
        ones = torch.ones_like(states[:, 0])
        bars = (ones, ones.clone(), torch.zeros_like(states))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        run, gradients = self.directions.run, self.directions.gradients
        # The whole rollout: nothing may be left to compile while the stream is captured.
        with torch.cuda.stream(side):
            for _ in range(2):
                gradients(run(grid, count, static), bars)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=pool):
            kept = run(grid, count, static)
            worst = kept.residual.amax()
        with torch.cuda.graph(backward, pool=pool):
            found = gradients(kept, bars)
        return _Capture(static, kept, worst, forward, backward, bars, found)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies, in one kernel: what a captured graph has written, its next replay overwrites."""
    return list(torch._foreach_mul(tensors, 1.0))
