"""Reference optima by CasADi and IPOPT, one initial state at a time, from several starts.

The program is the rollout's own (see `program`), so that the optimum is a lower bound of the cost
any policy can reach from that state, as far as IPOPT's local optimum is the global one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.reference.agent import agent_states, one_agent
from bench.reference.program import Point, Program
from bench.reference.solution import Solution, Solver, in_double
from bench.reference.starts import SPREADS, Guess, fanned, starting_guesses
from jfbcore import _validate
from jfbcore.problems import Bicycle, Consumption, Liquidation, Problem, Quadrotor

#: bicycles up to which every start is tried: larger programs take a minute a start
_MANY_STARTS_LIMIT = 6
#: starts of a state in all, where nobody says how many
_FEWEST_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class Ipopt(Solver):
    """IPOPT with MUMPS on the multiple-shooting problem.

    `starts` is the number of `starting_guesses` per state; None takes 6 for single quadrotors and
    up to 6 bicycles, which have many local optima, and elsewhere as many as make three starts in
    all. The previous state's optimum is tried besides, and with several agents the join of every
    agent's own best optimum (quadrotors) or trajectories that fan out (bicycles).
    `max_iterations` is for a hundred quadrotors, whose interaction's curvature is left out.
    """

    starts: int | None = None
    tolerance: float = 1e-9
    max_iterations: int = 1000
    time_limit: float = 300.0  # processor seconds per start

    def __post_init__(self) -> None:
        if self.starts is not None:
            _validate.positive_int("starts", self.starts)
        _validate.positive_int("max_iterations", self.max_iterations)
        for name in ("tolerance", "time_limit"):
            _validate.positive(name, getattr(self, name))

    def agents_alone(self, problem: Problem, states: Tensor) -> Tensor:
        """Controls (batch, n_steps, m) that join every agent's own best optimum, found alone.

        Where agents are coupled weakly this is near an optimum of the whole, at the price of one
        small program per agent and start.
        """
        problem, states = in_double(problem), states.detach().double().cpu()
        alone = Program.build(one_agent(problem), self)
        guesses = [_agents_guess(problem, alone, state, self.starts) for state in states]
        return torch.stack([torch.from_numpy(guess.decisions) for guess in guesses])

    def _solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None
    ) -> Iterator[Solution]:
        program = Program.build(problem, self)
        alone = None
        coupled = not isinstance(problem, (Consumption, Liquidation))
        if controls is None and problem.n_agents > 1 and coupled:
            # Agents are coupled through their interaction or their common control cost.
            alone = Program.build(one_agent(problem), self)
        previous: Point | None = None
        for index, state in enumerate(states):
            begin = time.perf_counter()
            if controls is None:
                points = self._starts(problem, program, alone, state, previous, index)
            else:
                points = [program.point(program.flight(state, controls[index].double()))]
            best = program.solve_best(state, points)
            if best.solution.solved:
                previous = best.point
            seconds = time.perf_counter() - begin
            yield replace(best.solution, seconds=seconds, starts=len(points))

    def _starts(
        self,
        problem: Problem,
        program: Program,
        alone: Program | None,
        state: Tensor,
        previous: Point | None,
        seed: int,
    ) -> list[Point]:
        points = [] if previous is None else [previous]
        guesses = []
        if isinstance(problem, Bicycle) and alone is not None:
            for spread in SPREADS:
                reached, fan, _ = fanned(problem, state[None], spread)
                guesses.append(Guess(states=reached[0, 1:].numpy(), decisions=fan[0].numpy()))
        elif alone is not None:
            guesses.append(_agents_guess(problem, alone, state, self.starts))
        count = self.starts
        # These are solved from every listed start, because their optima differ.
        limit = _MANY_STARTS_LIMIT if isinstance(problem, Bicycle) else 1
        many = isinstance(problem, (Bicycle, Quadrotor)) and problem.n_agents <= limit
        if count is None and not many:
            count = max(0, _FEWEST_STARTS - len(points) - len(guesses))
        if count != 0:
            guesses += starting_guesses(problem, state, count, seed=seed)
        return points + [program.point(guess) for guess in guesses]


def _agents_guess(problem: Problem, alone: Program, state: Tensor, starts: int | None) -> Guess:
    """Every agent's own best optimum from `state` (n,), joined; the other agents left out."""
    guesses, previous = [], None
    for index, agent_state in enumerate(agent_states(problem, state[None])):
        points = [] if previous is None else [previous]
        own = starting_guesses(alone.problem, agent_state, starts, seed=index)
        points += [alone.point(guess) for guess in own]
        result = alone.solve_best(agent_state, points)
        guesses.append(alone.guess(result.point))
        # An agent that failed gives its last iterate as a start, and nothing to the next agent.
        previous = result.point if result.solution.solved else previous
    return Guess(
        states=np.concatenate([guess.states for guess in guesses], axis=1),
        decisions=np.concatenate([guess.decisions for guess in guesses], axis=1),
    )
