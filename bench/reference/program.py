"""One initial state's nonlinear program in CasADi, solved by IPOPT from a starting point.

The discretisation is the rollout's own (see `nlp`): every state is a variable and every Euler step
a constraint. Derivatives are exact and sparse.

The interaction's jump at the cutoff has no derivative that a Newton method could use, so the
solver sees the smooth kernel everywhere; the reported cost has the cutoff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import casadi as ca
import numpy as np
import torch
from torch import Tensor

from bench.reference.nlp import Stage, stage_of
from bench.reference.solution import Solution, fly, open_loop_cost
from bench.reference.starts import Guess
from jfbcore.problems import Bicycle, Consumption, Problem

if TYPE_CHECKING:
    from bench.reference.ipopt import Ipopt


@dataclass(frozen=True, kw_only=True)
class Point:
    """Primal and dual variables; multipliers None where unknown."""

    primal: np.ndarray
    dual: np.ndarray | None


class Result(NamedTuple):
    """Where IPOPT ended, and what that is worth."""

    point: Point
    solution: Solution

    @property
    def rank(self) -> tuple[bool, float]:
        """Solved before unsolved, then by cost; a cost that is not finite comes last."""
        cost = self.solution.cost
        return (not self.solution.solved, cost) if np.isfinite(cost) else (True, np.inf)


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
    def build(
        cls,
        problem: Problem,
        settings: Ipopt,
        others: ca.Function | None = None,
        stage: Stage | None = None,
    ) -> Program:
        """`others`: (z, decision, data) -> a running cost more, the data (d, n_steps) a parameter.

        `stage` in place of the problem's own.
        """
        stage = stage_of(problem) if stage is None else stage
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
            data = ca.MX.sym("data", others.size1_in(2), steps)
            total = total + h * ca.sum2(others.map(steps)(before, V, data))
        parameters = ca.vertcat(start, ca.vec(data))
        options = _options(settings)
        if stage.interaction_blocks:
            # Newton steps then see the agents one by one, and the factorisation stays sparse.
            # Without the blocks they overshoot: 350 iterations for 100 quadrotors.
            scale, multipliers = ca.MX.sym("scale"), ca.MX.sym("multipliers", g.shape[0])
            hessian, _ = ca.hessian(scale * separable + ca.dot(multipliers, g), x)
            blocks = ca.horzsplit(stage.interaction_blocks.map(steps - 1)(Z[:, :-1]), n)
            rest = ca.MX(x.shape[0] - n * (steps - 1), x.shape[0] - n * (steps - 1))
            hessian += scale * h * ca.diagcat(*blocks, rest)
            arguments = [x, parameters, scale, multipliers]
            options["hess_lag"] = ca.Function("hess_lag", arguments, [ca.triu(hessian)])
        # CasADi's own annotations know only SX programs.
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

    def flight(self, state: Tensor, controls: Tensor) -> Guess:
        """Where `controls` (n_steps, m) lead from `state` (n,), as a starting point."""
        states = fly(self.problem, state[None], lambda i, z: controls[None, i])[0][0].numpy()
        decisions = controls.numpy().copy()
        if isinstance(self.problem, Consumption):
            decisions -= states[:-1, 1:]  # the decision is the excess over the habit
        return Guess(states=states[1:], decisions=decisions)

    def guess(self, point: Point) -> Guess:
        steps, n = self.problem.n_steps, self.problem.state_dim
        end = steps * (n + self.problem.control_dim)
        return Guess(
            states=point.primal[: steps * n].reshape(steps, n),
            decisions=point.primal[steps * n : end].reshape(steps, -1),
        )

    def within(self, state: np.ndarray, point: Point) -> np.ndarray:
        """1 for each pair of agents nearer than the cutoff at a step, else 0: (n_steps, pairs)."""
        states = np.vstack([state, self.guess(point).states[:-1]])
        dimension = 2 if isinstance(self.problem, Bicycle) else 3
        n_agents = self.problem.n_agents
        positions = states.reshape(len(states), n_agents, -1)[..., :dimension]
        squared = ((positions[:, :, None] - positions[:, None]) ** 2).sum(-1)
        return (squared[:, *np.tril_indices(n_agents, -1)] < 4).astype(float)

    def solve(self, state: np.ndarray, point: Point, data: np.ndarray | None = None) -> Result:
        """From `state` (n,) and `point`; `data` (n_steps, d) where the program has any."""
        parameters = state if data is None else np.concatenate([state, data.ravel()])
        found = self.solver(
            x0=point.primal,
            p=parameters,
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
        columns = self.stage.control.map(self.problem.n_steps)(before.T, guess.decisions.T)
        controls = torch.from_numpy(np.array(columns).T.copy())
        start = torch.from_numpy(state)
        cost = open_loop_cost(self.problem, start[None], controls[None]).item()
        solution = Solution(
            cost=cost,
            objective=float(found["f"]),
            controls=controls,
            status=statistics["return_status"],
            solved=bool(statistics["success"]) and math.isfinite(cost),
            kkt_residual=self._kkt_residual(parameters, found),
        )
        return Result(reached, solution)

    def _kkt_residual(self, parameters: np.ndarray, found: dict[str, ca.DM]) -> float:
        """The largest violation of the first-order conditions, evaluated apart from IPOPT.

        Constraints are in their own units, the Lagrangian's gradient and the products of a bound's
        multiplier and the distance to it in units of the largest multiplier, or 1 if that is less.
        """
        x, multipliers, bounds = (np.array(found[k]).ravel() for k in ("x", "lam_g", "lam_x"))
        gradient = self.solver.get_function("nlp_grad")(x, parameters, 1.0, multipliers)
        constraints, slope = (np.array(part).ravel() for part in gradient[1:3])
        distance = np.where(bounds > 0, self.upper - x, x - self.lower)
        held = np.multiply(bounds, distance, where=bounds != 0, out=np.zeros_like(x))
        unit = max(1.0, np.abs(multipliers).max(), np.abs(bounds).max())
        dual = max(np.abs(slope + bounds).max(), np.abs(held).max()) / unit
        return float(max(np.abs(constraints).max(), dual))


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
        "ipopt.max_cpu_time": settings.time_limit,
    }
