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
from bench.reference.nlp import cut_interaction
from bench.reference.program import Point, Program, Result
from bench.reference.solution import Solution, Solver, in_double
from bench.reference.starts import SPREADS, Guess, fanned, starting_guesses
from jfbcore import _validate
from jfbcore.problems import Bicycle, Consumption, Liquidation, Problem, Quadrotor

#: bicycles up to which every start is tried: larger programs take a minute a start
_MANY_STARTS_LIMIT = 6
#: quadrotors up to which IPOPT also starts from a flight that nobody optimised
_NAIVE_STARTS_LIMIT = 5
#: tolerance beyond: without the curvature across agents convergence is linear
_SWARM_TOLERANCE = 1e-7
#: times that a solution is improved with the interaction cut off
_CUTS = 3
#: starts of a state in all, where nobody says how many
_FEWEST_STARTS = 3
#: swarms: one agent in so many flies its second kind of flight, 0 for none of them; and how many of
#: these are tried after the first state, whose best mixes are the best of other states, too
_MIXES = (0, 16, 8, 4, 3, 2)
_KEPT_MIXES = 2


@dataclass(frozen=True, kw_only=True)
class Ipopt(Solver):
    """IPOPT with MUMPS on the multiple-shooting problem.

    `starts` is the number of `starting_guesses` per state; None takes 6 for single quadrotors and
    up to 6 bicycles, which have many local optima, and elsewhere as many as make three starts in
    all. The previous state's optimum is tried besides, and with several agents the join of every
    agent's own best optimum (quadrotors, from seven on with a share of them on their second kind of
    flight) or trajectories that fan out (bicycles).
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

    def kinds_of_flight(
        self,
        problem: Problem,
        states: Tensor,
        kinds: int,
        *,
        progress: Callable[[int], object] = lambda count: None,
    ) -> list[list[Solution]]:
        """For each of the first `kinds` starting guesses, the optimum near it from each of `states`
        (batch, n).

        Only the first state starts from the guess, every other one from the optimum before, so that
        all optima of one guess are of one kind, which need not be the best.
        """
        problem, states = in_double(problem), states.detach().double().cpu()
        program = Program.build(problem, self)
        found = []
        for guess in starting_guesses(problem, states[0], kinds, seed=0):
            point, solutions = program.point(guess), []
            for state in states:
                begin = time.perf_counter()
                result = program.solve(state.numpy(), point)
                if result.solution.solved:
                    point = result.point
                seconds = time.perf_counter() - begin
                solutions.append(replace(result.solution, seconds=seconds))
                progress(1)
            found.append(solutions)
        return found

    def _solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None
    ) -> Iterator[Solution]:
        settings = self
        if _is_swarm(problem):
            settings = replace(self, tolerance=max(self.tolerance, _SWARM_TOLERANCE))
        program = Program.build(problem, settings)
        alone = None
        coupled = not isinstance(problem, (Consumption, Liquidation))
        if controls is None and problem.n_agents > 1 and coupled:
            # Agents are coupled through their interaction or their common control cost.
            alone = Program.build(one_agent(problem), self)
        cut = None
        if program.stage.interaction:
            pairs, stage = cut_interaction(problem), replace(program.stage, interaction=None)
            cut = Program.build(problem, settings, pairs, stage)
        previous: Point | None = None
        mixes: tuple[int, ...] = _MIXES
        for index, state in enumerate(states):
            begin = time.perf_counter()
            if controls is None:
                points = self._starts(problem, program, alone, state, previous, index, mixes)
            else:
                points = [program.point(program.flight(state, controls[index].double()))]
            results = [program.solve(state.numpy(), point) for point in points]
            best = min(results, key=lambda result: result.rank)
            if len(mixes) == len(points) == len(_MIXES):
                ranked = sorted(zip(results, mixes, strict=True), key=lambda pair: pair[0].rank)
                mixes = tuple(mix for _, mix in ranked[:_KEPT_MIXES])
            if best.solution.solved:
                previous = best.point
                best = best if cut is None else _cut_off(problem, cut, state, best)
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
        mixes: tuple[int, ...],
    ) -> list[Point]:
        points = [] if previous is None else [previous]
        guesses = []
        if isinstance(problem, Bicycle) and alone is not None:
            for spread in SPREADS:
                reached, fan, _ = fanned(problem, state[None], spread)
                guesses.append(Guess(states=reached[0, 1:].numpy(), decisions=fan[0].numpy()))
        elif alone is not None and self.starts is None and _is_swarm(problem):
            guesses += _agents_guesses(problem, alone, state, mixes)
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


def _cut_off(problem: Problem, cut: Program, state: Tensor, smooth: Result) -> Result:
    """`smooth`, or what is cheaper where the pairs beyond the cutoff no longer repel each other.

    Which pairs those are is kept from the solution before; solving again may find fewer within.
    """
    best = smooth
    for _ in range(_CUTS):
        within = cut.within(state.numpy(), best.point)
        better = cut.solve(state.numpy(), best.point, within)
        if better.rank >= best.rank:
            break
        best = better
    return best


def _agents_guess(problem: Problem, alone: Program, state: Tensor, starts: int | None) -> Guess:
    """Every agent's own best optimum from `state` (n,), joined; the other agents left out."""
    return _joined([best for best, _ in _agents_optima(problem, alone, state, starts)])


def _agents_guesses(
    problem: Problem, alone: Program, state: Tensor, mixes: tuple[int, ...]
) -> list[Guess]:
    """Joins of the agents' own optima: for each of `mixes`, one agent in so many on its second kind
    of flight, none for 0, all others on their best. Where many agents are in each other's way, two
    kinds of flight cost less than one.
    """
    optima = _agents_optima(problem, alone, state, None)
    guesses = []
    for every in mixes:
        kinds = [every > 0 and i % every == every - 1 for i in range(len(optima))]
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
        best = min(results, key=lambda result: result.rank)
        kinds = pair or (best, best)
        optima.append((alone.guess(kinds[0].point), alone.guess(kinds[1].point)))
        # An agent that failed gives its last iterate as a start, and nothing to the next agent.
        points = [result.point for result in kinds if result.solution.solved]
    return optima


def _two_kinds(results: list[Result]) -> tuple[Result, Result] | None:
    """The best of the solved `results`, and the best of those that cost 1 % more; None without."""
    solved = sorted((r for r in results if r.solution.solved), key=lambda r: r.solution.objective)
    dearer = [r for r in solved if r.solution.objective > solved[0].solution.objective * 1.01]
    return (solved[0], dearer[0]) if dearer else None


def _joined(guesses: list[Guess]) -> Guess:
    return Guess(
        states=np.concatenate([guess.states for guess in guesses], axis=1),
        decisions=np.concatenate([guess.decisions for guess in guesses], axis=1),
    )


def _is_swarm(problem: Problem) -> bool:
    """Whether a start far from the optimum takes IPOPT hours: all starts are then joined optima."""
    return isinstance(problem, Quadrotor) and problem.n_agents > _NAIVE_STARTS_LIMIT
