"""Lower bounds of the optimal cost, from relaxations whose agents no longer meet.

What couples the agents is replaced by something below it that is a sum over agents; the exact
optimum of the rest is then a sum of optima of one agent each. With h the time step:

- Quadrotors share exp(s_t), s_t = sum_i |u_i|^2 / (2N). exp lies above its tangents, so for any
  numbers b_t: exp(s_t) >= exp(b_t) (1 - b_t) + (1/N) sum_i exp(b_t) |u_i|^2 / 2. Here b_t is the
  s_t of the reference, where the tangent touches.
- Goods share the bequest G(x_T), convex and decreasing, and x_T is affine in the consumption:
  x_T = g^n x_0 - h sum_i g^(n-1-i) sum_j u_ij, g = 1 + h r. G lies above its tangent at the
  reference's x_T, which charges every good the same price for its consumption.
- The interaction w Q is at least zero, and known where positions are given by the initial state:
  at the first two times, because a control moves positions two steps later. Between, with d the
  distance of two agents and any c in [0, 2], 1[d^2 < 4] exp(-d^2/2) >= exp(-c/2) (1 - (d^2 - c)/2):
  below the cutoff by convexity, beyond it because the right-hand side is not positive there. The
  sum of d^2 over pairs is at most N sum_i |x_i - y|^2 for any point y, here the agents' mean in the
  reference. The best c of a few and of none is taken.

Each bound holds as far as the one-agent programs are solved to their global optimum. They are not
convex either; the best of several starts is taken, as in the references of one agent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import casadi as ca
import numpy as np
import torch
from torch import Tensor

from bench.reference.agent import agent_states, one_agent
from bench.reference.ipopt import Ipopt
from bench.reference.nlp import Stage, stage_of
from bench.reference.program import Point, Program
from bench.reference.solution import fly, in_double
from bench.reference.starts import starting_guesses
from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor
from jfbcore.problems.interaction import interaction_cost

#: squared distances at which the interaction's tangent touches it [m^2]
_TOUCHING = (0.5, 1.0, 2.0)
#: starts of an agent, besides its neighbour's optimum
_STARTS = 2


def lower_bound(problem: Problem, state: Tensor, controls: Tensor, ipopt: Ipopt) -> float | None:
    """A lower bound of the optimal cost from `state` (n,), tight near `controls` (n_steps, m).

    None where there is no relaxation for the problem, or where IPOPT failed on an agent.
    """
    for kind, bound in _BOUNDS.items():
        if isinstance(problem, kind):
            return bound(in_double(problem), state.double(), controls.double(), ipopt)
    return None


def _quadrotors(problem: Quadrotor, state: Tensor, controls: Tensor, ipopt: Ipopt) -> float | None:
    n_agents, h = problem.n_agents, problem.time_step
    alone = one_agent(problem)
    data, z, v = ca.SX.sym("data", 5), ca.SX.sym("z", 12), ca.SX.sym("v", 4)
    charge = data[0] * ca.sumsqr(v) / 2 - data[1] * ca.sumsqr(z[:3] - data[2:])
    priced = ca.Function("priced", [z, v, data], [charge])
    program = Program.build(alone, ipopt, priced, _without_running_cost(stage_of(alone)))
    touching = controls.square().sum(1) / (2 * n_agents)
    weight = touching.exp()
    constant = h * (weight * (1 - touching)).sum().item()
    positions = _positions(problem, state, controls, 12, 3)
    centre = positions.mean(1)
    known = _known_interaction(problem, positions)

    def relaxed(pull: float) -> float | None:
        """The sum over agents that gain `pull` |x - centre|^2 after the first two times, / N."""
        pulls = torch.full_like(weight, pull)
        pulls[:2] = 0.0
        table = torch.cat((weight[:, None], pulls[:, None], centre), 1).numpy()
        costs = _each_agent(program, agent_states(problem, state[None]), table)
        return None if costs is None else math.fsum(costs) / n_agents

    bounds = [relaxed(0.0)]
    if n_agents > 1 and problem.interaction_weight > 0:
        for c in _TOUCHING:
            steep = problem.interaction_weight * math.exp(-c / 2) / 4
            pairs = steep * (1 + c / 2) * (n_agents - 1)
            # In the agents' own unit, N times the whole's.
            rest = relaxed(steep * n_agents)
            bounds.append(None if rest is None else rest + h * (problem.n_steps - 2) * pairs)
    found = [bound for bound in bounds if bound is not None]
    return constant + known + max(found) if found else None


def _bicycles(problem: Bicycle, state: Tensor, controls: Tensor, ipopt: Ipopt) -> float | None:
    # Their controls cost next to nothing: agents that gain by distance would drive off, so that
    # the tangent of the interaction is of no use.
    program = Program.build(one_agent(problem), ipopt)
    costs = _each_agent(program, agent_states(problem, state[None]), None)
    positions = _positions(problem, state, controls, 4, 2)
    return None if costs is None else math.fsum(costs) + _known_interaction(problem, positions)


def _goods(problem: Consumption, state: Tensor, controls: Tensor, ipopt: Ipopt) -> float | None:
    if problem.A is not None or problem.B is not None:
        return None  # habits that form each other's are not a sum over goods
    alone, steps = one_agent(problem), problem.n_steps
    growth = 1 + problem.time_step * problem.r
    factors = growth ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    spent = problem.time_step * (factors * controls.sum(1)).sum()
    wealth = (growth**steps * state[0] - spent).reshape(1, 1).requires_grad_()
    bequest = problem.terminal_cost(wealth.expand(1, problem.state_dim))
    (slope,) = torch.autograd.grad(bequest.sum(), wealth)
    # Spent wealth is charged at the slope; a purse that nothing else depends on never runs out.
    charge = ca.SX.sym("charge")
    z, v = ca.SX.sym("z", 2), ca.SX.sym("v", 1)
    spending = ca.Function("spending", [z, v, charge], [charge * (z[1] + v)])
    stage = stage_of(alone)
    free = ca.Function("end", [z], [ca.SX(0)])
    stage = replace(stage, terminal_cost=free, final_state_lower=[-math.inf, 0.0])
    program = Program.build(alone, ipopt, spending, stage)
    table = (-slope.item() * factors)[:, None].numpy()
    costs = _each_agent(program, agent_states(problem, state[None]), table)
    if costs is None:
        return None
    unspent = growth**steps * state[0].item() - wealth.item()
    return math.fsum(costs) + bequest.item() + slope.item() * unspent


def _each_agent(program: Program, states: Tensor, table: np.ndarray | None) -> list[float] | None:
    """The least objective of every agent's program, or None where one was not solved."""
    costs: list[float] = []
    previous: Point | None = None
    for index, state in enumerate(states):
        guesses = starting_guesses(program.problem, state, _STARTS, seed=index)
        points = [program.point(guess) for guess in guesses]
        points += [] if previous is None else [previous]
        results = [program.solve(state.numpy(), point, table) for point in points]
        solved = [result for result in results if result.solution.solved]
        if not solved:
            return None
        best = min(solved, key=lambda result: result.solution.objective)
        costs.append(best.solution.objective)
        previous = best.point
    return costs


def _without_running_cost(stage: Stage) -> Stage:
    names = ("t", "z", "u", "lifted")
    sizes = (1, stage.dynamics.size1_in(1), stage.dynamics.size1_in(2), 1)
    symbols = [ca.SX.sym(name, size) for name, size in zip(names, sizes, strict=True)]
    nothing = ca.Function("running", symbols, [ca.SX(0)])
    return replace(stage, running_cost=nothing, lifted=None, interaction=None)


def _positions(
    problem: Problem, state: Tensor, controls: Tensor, width: int, dimension: int
) -> Tensor:
    """Positions (n_steps, N, dimension) at the times the running cost sees."""
    states = fly(problem, state[None], lambda i, z: controls[None, i])[0][0, :-1]
    return states.unflatten(1, (-1, width))[..., :dimension]


def _known_interaction(problem: Quadrotor | Bicycle, positions: Tensor) -> float:
    """What the interaction costs at the first two times, which no control changes."""
    if problem.n_agents == 1:
        return 0.0
    costs = interaction_cost(positions[:2])
    return problem.time_step * problem.interaction_weight * costs.sum().item()


_BOUNDS: dict[type[Problem], Callable[..., float | None]] = {
    Quadrotor: _quadrotors,
    Bicycle: _bicycles,
    Consumption: _goods,
}
