"""Reference optima by CasADi and IPOPT, one initial state at a time, from several starts.

The discretisation is the rollout's own (see `nlp`), so that the optimum is a lower bound of the
cost any policy can reach from that state, as far as IPOPT's local optimum is the global one.
Derivatives are exact and sparse; each state starts from the optimum of the one before.

The interaction's jump at the cutoff has no derivative that a Newton method could use, so the
solver sees the smooth kernel everywhere; the reported cost has the cutoff.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import casadi as ca
import numpy as np
import torch
from torch import Tensor

from bench.reference.agent import agent_states, one_agent
from bench.reference.fan import fanned_guesses
from bench.reference.nlp import Stage, stage_of
from bench.reference.solution import Solution, in_double, open_loop_cost
from bench.reference.starts import Guess, starting_guesses
from jfbcore import _validate
from jfbcore.problems import Bicycle, Consumption, Liquidation, Problem

#: bicycles up to which every start is tried
_MANY_STARTS_LIMIT = 6


@dataclass(frozen=True, kw_only=True)
class Ipopt:
    """IPOPT with MUMPS on the multiple-shooting problem.

    `starts` is the number of `starting_guesses` per state; None takes 6 for bicycles and single
    quadrotors, which have many local optima, and 1 elsewhere. The previous state's optimum is
    tried besides, and with several agents the join of every agent's own best optimum
    (quadrotors) or trajectories that fan out (bicycles; above 6 of them these two only).
    """

    starts: int | None = None
    tolerance: float = 1e-9
    max_iterations: int = 300
    time_limit: float = 300.0  # [s] per start

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
        """The best local optimum found from each of `states`, (batch, n).

        `progress` is called with 1 after each state. A state IPOPT could not solve comes back
        with IPOPT's own return status and `solved=False`.
        """
        problem, states = in_double(problem), states.detach().double().cpu()
        program = Program.build(problem, self)
        alone = None
        if problem.n_agents > 1 and not isinstance(problem, (Consumption, Liquidation)):
            # Agents are coupled through their interaction or their common control cost.
            alone = Program.build(one_agent(problem), self)
        solutions: list[Solution] = []
        previous: Point | None = None
        for index, state in enumerate(states):
            begin = time.perf_counter()
            points = [] if previous is None else [previous]
            if isinstance(problem, Bicycle) and alone is not None:
                fans = [program.point(fan) for fan in fanned_guesses(problem, state)]
                # Large programs take a minute a start, and the fan is the start that pays.
                points += fans if problem.n_agents <= _MANY_STARTS_LIMIT else fans[:1]
            elif alone is not None:
                points.append(program.point(_agents_guess(problem, alone, state, self.starts)))
            few = problem.n_agents > _MANY_STARTS_LIMIT and self.starts is None
            if alone is None or (isinstance(problem, Bicycle) and not few) or self.starts:
                guesses = starting_guesses(problem, state, self.starts, seed=index)
                points += [program.point(guess) for guess in guesses]
            best = program.solve_best(state, points)
            if best.solved:
                previous = best.point
            solutions.append(best.solution(problem, state, time.perf_counter() - begin))
            if progress is not None:
                progress(1)
        return solutions


@dataclass(frozen=True, kw_only=True)
class Point:
    """Primal and dual variables; multipliers None where unknown."""

    primal: np.ndarray
    dual: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Result:
    point: Point
    objective: float
    controls: Tensor  # (n_steps, m)
    status: str
    solved: bool

    def cost(self, problem: Problem, state: Tensor) -> float:
        return open_loop_cost(problem, state[None], self.controls[None]).item()

    def rank(self, problem: Problem, state: Tensor) -> tuple[bool, float]:
        """Solved before unsolved, then by cost; a cost that is not finite comes last."""
        cost = self.cost(problem, state)
        return (not self.solved, cost) if np.isfinite(cost) else (True, np.inf)

    def solution(self, problem: Problem, state: Tensor, seconds: float) -> Solution:
        cost = self.cost(problem, state)
        return Solution(
            cost=cost,
            objective=self.objective,
            controls=self.controls,
            status=self.status,
            solved=self.solved and bool(np.isfinite(cost)),
            seconds=seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Program:
    """A nonlinear program whose parameters are the initial state and, if any, the others' paths.

    Variables, in this order: states 1..n_steps, decisions 0..n_steps-1, lifted variables.
    """

    problem: Problem
    stage: Stage
    solver: ca.Function
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def build(cls, problem: Problem, settings: Ipopt, others: ca.Function | None = None) -> Program:
        """`others`: (z, data) -> a running cost more, with the data (d, n_steps) a parameter."""
        stage = stage_of(problem)
        steps, h = problem.n_steps, problem.time_step
        n, m = problem.state_dim, problem.control_dim
        t, z, v, s = (ca.SX.sym(x, k) for x, k in zip("tzvs", (1, n, m, 1), strict=True))
        u = stage.control(z, v)
        euler = ca.Function("euler", [t, z, v], [z + h * stage.dynamics(t, z, u)]).map(steps)
        running = ca.Function("cost", [t, z, v, s], [h * stage.running_cost(t, z, u, s)])

        start = ca.MX.sym("start", n)
        Z, V = ca.MX.sym("Z", n, steps), ca.MX.sym("V", m, steps)
        S = ca.MX.sym("S", 1, steps) if stage.lifted else ca.MX(1, steps)
        before = ca.horzcat(start, Z[:, :-1])
        times = ca.DM([i * h for i in range(steps)]).T
        variables = [ca.vec(Z), ca.vec(V)]
        constraints = [ca.vec(euler(times, before, V) - Z)]
        if stage.lifted:
            variables.append(ca.vec(S))
            constraints.append(ca.vec(stage.lifted.map(steps)(V) - S))
        x, g = ca.vertcat(*variables), ca.vertcat(*constraints)
        separable = ca.sum2(running.map(steps)(times, before, V, S)) + stage.terminal_cost(Z[:, -1])
        total = separable
        if stage.interaction:
            total = total + h * ca.sum2(stage.interaction.map(steps)(before))
        data = ca.MX(0, steps)
        if others is not None:
            data = ca.MX.sym("data", others.size1_in(1), steps)
            total = total + h * ca.sum2(others.map(steps)(before, data))
        options = _options(settings)
        if stage.interaction and not stage.interaction_hessian:
            # Newton steps then see the agents one by one, and the factorisation stays sparse.
            scale, multipliers = ca.MX.sym("scale"), ca.MX.sym("multipliers", g.shape[0])
            hessian, _ = ca.hessian(scale * separable + ca.dot(multipliers, g), x)
            arguments = [x, start, scale, multipliers]
            options["hess_lag"] = ca.Function("hess_lag", arguments, [ca.triu(hessian)])
        # CasADi's own annotations know only SX programs.
        parameters = ca.vertcat(start, ca.vec(data))
        program: dict[str, Any] = {"x": x, "p": parameters, "f": total, "g": g}
        lifted = np.full(steps if stage.lifted else 0, np.inf)
        lower_states = [*stage.state_lower * (steps - 1), *stage.final_state_lower]
        return cls(
            problem=problem,
            stage=stage,
            solver=ca.nlpsol("nlp", "ipopt", program, options),
            lower=np.concatenate([lower_states, np.tile(stage.decision_lower, steps), -lifted]),
            upper=np.concatenate(
                [np.full(n * steps, np.inf), np.tile(stage.decision_upper, steps), lifted]
            ),
        )

    def point(self, guess: Guess) -> Point:
        parts = [guess.states.ravel(), guess.decisions.ravel()]
        if self.stage.lifted:
            parts.append(np.array(self.stage.lifted.map(self.problem.n_steps)(guess.decisions.T)))
        return Point(primal=np.concatenate([np.ravel(part) for part in parts]), dual=None)

    def guess(self, point: Point) -> Guess:
        steps, n = self.problem.n_steps, self.problem.state_dim
        end = steps * (n + self.problem.control_dim)
        return Guess(
            states=point.primal[: steps * n].reshape(steps, n),
            decisions=point.primal[steps * n : end].reshape(steps, -1),
        )

    def solve_best(self, state: Tensor, points: list[Point]) -> Result:
        """The best result over starting points, of which there must be at least one."""
        results = [self.solve(state.numpy(), point) for point in points]
        return min(results, key=lambda result: result.rank(self.problem, state))

    def solve(self, state: np.ndarray, point: Point, data: np.ndarray | None = None) -> Result:
        """From `state` (n,) and `point`; `data` (n_steps, d) where the program has any."""
        found = self.solver(
            x0=point.primal,
            p=state if data is None else np.concatenate([state, data.ravel()]),
            lbx=self.lower,
            ubx=self.upper,
            lbg=0.0,
            ubg=0.0,
            lam_g0=0.0 if point.dual is None else point.dual,
        )
        statistics = self.solver.stats()
        reached = Point(primal=np.array(found["x"]).ravel(), dual=np.array(found["lam_g"]).ravel())
        guess = self.guess(reached)
        before = np.vstack([state, guess.states[:-1]])
        controls = self.stage.control.map(self.problem.n_steps)(before.T, guess.decisions.T)
        return Result(
            point=reached,
            objective=float(found["f"]),
            controls=torch.from_numpy(np.array(controls).T.copy()),
            status=statistics["return_status"],
            solved=bool(statistics["success"]),
        )


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
        previous = result.point if result.solved else previous
    return Guess(
        states=np.concatenate([guess.states for guess in guesses], axis=1),
        decisions=np.concatenate([guess.decisions for guess in guesses], axis=1),
    )


def _options(settings: Ipopt) -> dict[str, Any]:
    return {
        "print_time": False,
        "ipopt.print_level": 0,
        "ipopt.sb": "yes",
        "ipopt.linear_solver": "mumps",
        "ipopt.tol": settings.tolerance,
        # An optimum accepted at a looser tolerance would not be one to a test at 1e-6.
        "ipopt.acceptable_iter": 0,
        # Relaxed bounds would let the controls leave the admissible set by a little.
        "ipopt.bound_relax_factor": 0.0,
        "ipopt.max_iter": settings.max_iterations,
        "ipopt.max_wall_time": settings.time_limit,
    }
