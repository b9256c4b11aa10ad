"""Bicycles by iterated best response: one agent's program at a time, the others' paths given.

The interaction is a sum over pairs, so what an agent gains by answering the others' paths the
whole gains: every answer lowers the total cost, and a fixed point is a control that no agent can
better alone. A program of one agent has 360 variables whatever the number of agents, which
reaches sizes whose joint program IPOPT cannot factorise. What it finds is "best known".
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import casadi as ca
import numpy as np
import torch
from torch import Tensor

from baselines import Extremals, extremals
from baselines.extremals import flown_beside
from bench.reference.agent import one_agent
from bench.reference.ipopt import Ipopt
from bench.reference.program import Point, Program, Result
from bench.reference.solution import Solution, Solver, open_loop_cost
from bench.reference.starts import arcs
from jfbcore import _validate
from jfbcore.extras.places import Places
from jfbcore.problems import Bicycle, Problem

#: where agents stand that are not placed yet [m]: far from all others
_NOWHERE = 1e3
#: directions of the excursions a new agent tries, and how far they go [m]
_DIRECTIONS = 8
_REACH = 2.2
#: agents up to which IPOPT solves the program of all: twenty take it a minute and a half
_TOGETHER = 20
CONVERGED = "no agent gains"
ROUND_LIMIT = "round limit"


@dataclass(frozen=True, kw_only=True)
class BestResponse(Solver):
    """Agents are placed one after the other, each on the best of several excursions given those
    before it; then all answer in turn until a whole round gains less than `tolerance`, relative,
    or `max_rounds` have been played.

    With `common`, all states are also started from one flight, that of the common swarm: agents
    assigned to its places fly its controls with their feedback. The better is kept.
    """

    tolerance: float = 1e-4
    max_rounds: int = 30
    common: bool = True
    ipopt: Ipopt = field(default_factory=Ipopt)

    def __post_init__(self) -> None:
        _validate.positive("tolerance", self.tolerance)
        _validate.positive_int("max_rounds", self.max_rounds)

    def supports(self, problem: Problem) -> str | None:
        """None, or why the problem's agents cannot answer one at a time."""
        if isinstance(problem, Bicycle) and problem.n_agents > 1:
            return None
        agents = "agent" if problem.n_agents == 1 else "agents"
        return (
            f"best-response is for several bicycles, got {problem.name} with "
            f"{problem.n_agents} {agents}; use ipopt"
        )

    def _solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None
    ) -> Iterator[Solution]:
        assert isinstance(problem, Bicycle)
        program = Program.build(one_agent(problem), self.ipopt, _crowd_interaction(problem))
        common: _CommonFlight | None = None
        for index, state in enumerate(states):
            begin = time.perf_counter()
            if controls is not None:
                found = [self._answers(problem, program, state, controls[index])]
            else:
                if self.common and common is None:
                    common = self._common_flight(problem, program)
                found = [self._answers(problem, program, state)]
                if common is not None and common.flight.solved:
                    beside = common.beside(problem, state)
                    found.append(self._answers(problem, program, state, beside))
            best = min(found, key=lambda one: one.cost if one.solved else math.inf)
            yield replace(best, seconds=time.perf_counter() - begin, starts=len(found))

    def _common_flight(self, problem: Bicycle, program: Program) -> _CommonFlight:
        """The flight of the common swarm; of few agents the optimum of all together near it."""
        places = Places.of(problem)
        start = places.states.flatten()
        flight = self._answers(problem, program, start)
        if flight.solved and problem.n_agents <= _TOGETHER:
            (optimum,) = self.ipopt.solve(problem, start[None], flight.controls[None])
            flight = min(flight, optimum, key=lambda one: one.cost if one.solved else math.inf)
        return _CommonFlight(places, flight)

    def _answers(
        self, problem: Bicycle, program: Program, state: Tensor, controls: Tensor | None = None
    ) -> Solution:
        """Rounds of answers from `state` (n,), begun where `controls` (n_steps, m) lead, or where
        agents are placed."""
        crowd = _Crowd(program, state.numpy().reshape(-1, 4))
        failure = crowd.place_all(problem) if controls is None else crowd.follow(controls.double())
        if failure is not None:
            # IPOPT found no path at all for some agent.
            return Solution(status=failure, solved=False)
        best, status = crowd.controls(), ROUND_LIMIT
        cost = open_loop_cost(problem, state[None], best[None]).item()
        for _ in range(self.max_rounds):
            for agent in range(problem.n_agents):
                crowd.answer(agent)
            controls = crowd.controls()
            after = open_loop_cost(problem, state[None], controls[None]).item()
            gain = cost - after
            # Answers do not see the interaction's cutoff, so that the cost may rise a little.
            if gain > 0:
                best, cost = controls, after
            if gain <= self.tolerance * abs(cost):
                status = CONVERGED
                break
        return Solution(
            cost=cost,
            objective=cost,
            controls=best,
            status=status,
            solved=math.isfinite(cost),
        )


class _CommonFlight:
    """A `flight` of the swarm that starts at `places`, and its feedback."""

    def __init__(self, places: Places, flight: Solution) -> None:
        self.places, self.flight = places, flight
        self.known: Extremals | None = None

    def beside(self, problem: Bicycle, state: Tensor) -> Tensor:
        """The controls (n_steps, m) that fly beside it from `state` (n,)."""
        if self.known is None:
            start = self.places.states.view(1, -1)
            self.known = extremals(problem, start, self.flight.controls[None])
        (order,) = self.places.order(state[None])
        _, controls, _ = flown_beside(problem, self.known, self.places(state[None]))
        own = controls[0].view(len(controls[0]), problem.n_agents, -1)
        return own[:, order.argsort()].flatten(1)


class _Crowd:
    """The agents' paths and controls of one initial state."""

    def __init__(self, program: Program, starts: np.ndarray) -> None:
        self.program, self.starts = program, starts
        steps = program.problem.n_steps
        #: positions at the times the running cost sees, (n_steps, N, 2)
        self.paths = np.full((steps, len(starts), 2), _NOWHERE)
        self.results: list[Result | None] = [None] * len(starts)

    def place_all(self, problem: Bicycle) -> str | None:
        """Place one agent after the other; IPOPT's status where one has no path at all."""
        reasons = (self.place(agent, problem) for agent in range(problem.n_agents))
        return next((reason for reason in reasons if reason is not None), None)

    def place(self, agent: int, problem: Bicycle) -> str | None:
        """Put `agent` on the best of several excursions; IPOPT's status if none is solved."""
        angles = 2 * math.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        outs = _REACH * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        start = self.starts[agent : agent + 1]
        guesses = [arcs(problem, start, out[None]) for out in (np.zeros(2), *outs)]
        found = [self._solve(agent, self.program.point(guess)) for guess in guesses]
        solved = [result for result in found if result.solution.solved]
        if not solved:
            return found[0].solution.status
        self._keep(agent, min(solved, key=lambda result: result.solution.objective))
        return None

    def follow(self, controls: Tensor) -> str | None:
        """Put all agents where `controls` (n_steps, m) lead them, then let each answer from there;
        IPOPT's status where one has no path."""
        own = controls.unflatten(1, (len(self.starts), -1)).unbind(1)
        guesses = [
            self.program.flight(torch.from_numpy(start), each)
            for start, each in zip(self.starts, own, strict=True)
        ]
        for agent, guess in enumerate(guesses):
            self._move(agent, guess.states)
        for agent, guess in enumerate(guesses):
            result = self._solve(agent, self.program.point(guess))
            if not result.solution.solved:
                return result.solution.status
            self._keep(agent, result)
        return None

    def answer(self, agent: int) -> None:
        """The agent's best path near its own; its old one where that fails."""
        old = self.results[agent]
        assert old is not None
        new = self._solve(agent, old.point)
        if new.solution.solved:
            self._keep(agent, new)

    def controls(self) -> Tensor:
        """(n_steps, m)."""
        return torch.cat([r.solution.controls for r in self.results if r is not None], 1)

    def _solve(self, agent: int, point: Point) -> Result:
        others = np.delete(self.paths, agent, axis=1).reshape(len(self.paths), -1)
        return self.program.solve(self.starts[agent], point, others)

    def _keep(self, agent: int, result: Result) -> None:
        self.results[agent] = result
        self._move(agent, self.program.guess(result.point).states)

    def _move(self, agent: int, states: np.ndarray) -> None:
        """`agent` is in `states` (n_steps, 4) after each step."""
        self.paths[:, agent] = np.vstack([self.starts[agent], states[:-1]])[:, :2]


def _crowd_interaction(problem: Bicycle) -> ca.Function:
    """(z and u of one agent, positions of the N - 1 others (2 (N - 1),)) -> that agent's share.

    weight / (2N) sum_j exp(-d_j^2 / 2): whatever one agent gains by it, the whole gains.
    """
    others = problem.n_agents - 1
    z, positions = ca.SX.sym("z", 4), ca.SX.sym("positions", 2 * others)
    total = ca.SX(0)
    for j in range(others):
        total += ca.exp(-ca.sumsqr(z[:2] - positions[2 * j : 2 * j + 2]) / 2)
    weight = problem.interaction_weight / (2 * problem.n_agents)
    return ca.Function("crowd", [z, ca.SX.sym("u", 2), positions], [weight * total])
