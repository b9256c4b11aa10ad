"""Reference optima by CasADi and IPOPT, one initial state at a time, from several starts.

The program is the rollout's own (see `program`), so that the optimum is a lower bound of the cost
any policy can reach from that state, as far as IPOPT's local optimum is the global one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.reference.agent import agent_states, one_agent
from bench.reference.fan import fanned_guesses
from bench.reference.nlp import cut_interaction
from bench.reference.program import Point, Program, Result
from bench.reference.solution import Solution, in_double
from bench.reference.starts import Guess, starting_guesses
from jfbcore import _validate
from jfbcore.problems import Bicycle, Consumption, Liquidation, Problem, Quadrotor

#: bicycles up to which every start is tried: larger programs take a minute a start
_MANY_STARTS_LIMIT = 6
#: quadrotors up to which IPOPT also starts from a flight that nobody optimised
_NAIVE_STARTS_LIMIT = 6
#: tolerance beyond: without the curvature across agents convergence is linear
_SWARM_TOLERANCE = 1e-7
#: times that a solution is improved with the interaction cut off
_CUTS = 3
#: starts of a state in all, where nobody says how many
_FEWEST_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class Ipopt:
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

    def solve(
        self,
        problem: Problem,
        states: Tensor,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[Solution]:
        """`solve_each` as a list; `progress` is called with 1 after each state."""
        solutions = []
        for solution in self.solve_each(problem, states):
            solutions.append(solution)
            if progress is not None:
                progress(1)
        return solutions

    def solve_each(self, problem: Problem, states: Tensor) -> Iterator[Solution]:
        """The best local optimum found from each of `states`, (batch, n), one by one.

        A state IPOPT could not solve comes back with IPOPT's own return status and `solved=False`.
        """
        problem, states = in_double(problem), states.detach().double().cpu()
        swarm = isinstance(problem, Quadrotor) and problem.n_agents > _NAIVE_STARTS_LIMIT
        settings = self
        if swarm:
            settings = replace(self, tolerance=max(self.tolerance, _SWARM_TOLERANCE))
        program = Program.build(problem, settings)
        alone = None
        if problem.n_agents > 1 and not isinstance(problem, (Consumption, Liquidation)):
            # Agents are coupled through their interaction or their common control cost.
            alone = Program.build(one_agent(problem), self)
        cut = None
        if program.stage.interaction:
            pairs, stage = cut_interaction(problem), replace(program.stage, interaction=None)
            cut = Program.build(problem, settings, pairs, stage)
        previous: Point | None = None
        for index, state in enumerate(states):
            begin = time.perf_counter()
            points = [] if previous is None else [previous]
            if isinstance(problem, Bicycle) and alone is not None:
                points += [program.point(fan) for fan in fanned_guesses(problem, state)]
            elif alone is not None and self.starts is None and swarm:
                points += [program.point(g) for g in _agents_guesses(problem, alone, state)]
            elif alone is not None:
                points.append(program.point(_agents_guess(problem, alone, state, self.starts)))
            count = self.starts
            if count is None and not _has_many_optima(problem):
                count = max(0, _FEWEST_STARTS - len(points))
            if count != 0:
                guesses = starting_guesses(problem, state, count, seed=index)
                points += [program.point(guess) for guess in guesses]
            best = program.solve_best(state, points)
            if best.solved:
                previous = best.point
                best = best if cut is None else _cut_off(problem, cut, state, best)
            seconds = time.perf_counter() - begin
            yield best.solution(problem, state, seconds, len(points))


def _cut_off(problem: Problem, cut: Program, state: Tensor, smooth: Result) -> Result:
    """`smooth`, or what is cheaper where the pairs beyond the cutoff no longer repel each other.

    Which pairs those are is kept from the solution before; solving again may find fewer within.
    """
    best = smooth
    for _ in range(_CUTS):
        within = cut.within(state.numpy(), best.point)
        better = cut.solve(state.numpy(), best.point, within)
        if better.rank(problem, state) >= best.rank(problem, state):
            break
        best = better
    return best


def _agents_guess(problem: Problem, alone: Program, state: Tensor, starts: int | None) -> Guess:
    """Every agent's own best optimum from `state` (n,), joined; the other agents left out."""
    return _joined([best for best, _ in _agents_optima(problem, alone, state, starts)])


def _agents_guesses(problem: Problem, alone: Program, state: Tensor) -> list[Guess]:
    """Joins of the agents' own optima: all on their best; every sixteenth to every second one on its
    second kind of flight. Where many agents are in each other's way, two kinds of flight cost less
    than one.
    """
    optima = _agents_optima(problem, alone, state, None)
    guesses = []
    for every in (len(optima) + 1, 16, 8, 4, 3, 2):
        kinds = [i % every == every - 1 for i in range(len(optima))]
        guesses.append(_joined([pair[k] for pair, k in zip(optima, kinds, strict=True)]))
    return guesses


def _agents_optima(
    problem: Problem, alone: Program, state: Tensor, starts: int | None
) -> list[tuple[Guess, Guess]]:
    """Every agent's best optimum, and the best of those that cost a hundredth more at least; the
    best again where all starts led to it.

    An agent starts from the optima of the one before, and from all starts where there are not two.
    """
    optima: list[tuple[Guess, Guess]] = []
    points: list[Point] = []
    for index, agent_state in enumerate(agent_states(problem, state[None])):
        results = [alone.solve(agent_state.numpy(), point) for point in points]
        pair = _two_kinds(results)
        if pair is None:
            own = starting_guesses(alone.problem, agent_state, starts, seed=index)
            results += [alone.solve(agent_state.numpy(), alone.point(guess)) for guess in own]
            pair = _two_kinds(results)
        best = min(results, key=lambda result: result.rank(alone.problem, agent_state))
        kinds = pair or (best, best)
        optima.append((alone.guess(kinds[0].point), alone.guess(kinds[1].point)))
        # An agent that failed gives its last iterate as a start, and nothing to the next agent.
        points = [result.point for result in kinds if result.solved]
    return optima


def _two_kinds(results: list[Result]) -> tuple[Result, Result] | None:
    """The best of the solved `results`, and the best of those that cost 1 % more; None without."""
    solved = sorted((r for r in results if r.solved), key=lambda r: r.objective)
    dearer = [r for r in solved if r.objective > solved[0].objective * 1.01]
    return (solved[0], dearer[0]) if dearer else None


def _joined(guesses: list[Guess]) -> Guess:
    return Guess(
        states=np.concatenate([guess.states for guess in guesses], axis=1),
        decisions=np.concatenate([guess.decisions for guess in guesses], axis=1),
    )


def _has_many_optima(problem: Problem) -> bool:
    """Whether a state is solved from every listed start, because its optima differ."""
    if isinstance(problem, Bicycle):
        return problem.n_agents <= _MANY_STARTS_LIMIT
    return isinstance(problem, Quadrotor) and problem.n_agents == 1
