"""The problems as CasADi expressions, discretised exactly as the rollout discretises them.

Left-endpoint Euler, z_{i+1} = z_i + h f(t_i, z_i, u_i), cost sum_i h L(t_i, z_i, u_i) + G(z_n),
by multiple shooting: every state is a variable and every Euler step a constraint, so that the
derivatives stay sparse. Parameters are read from the problem object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import casadi as ca
import numpy as np

from jfbcore.problems import Bicycle, Consumption, Liquidation, Problem, Quadrotor, RotorQuadrotor

#: above this many agents the second derivatives of a weak interaction cost across agents are left
#: out
_DENSE_INTERACTION_LIMIT = 6
#: share that is kept of the positive part within agents
_KEPT_CURVATURE = 0.3


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One time step of a problem. Every function is a CasADi SX function of column vectors.

    `decision` is what the solver chooses at a step: the control itself, or for consumption the
    excess over the habit, whose admissible set is a box. `lifted` collects a quantity that
    would make the Hessian dense into one variable per step.
    """

    #: (t, z, u) -> dz/dt
    dynamics: ca.Function
    #: (t, z, u, lifted) -> L without the interaction
    running_cost: ca.Function
    #: (z) -> G
    terminal_cost: ca.Function
    #: (z, decision) -> u
    control: ca.Function
    #: (u) -> lifted, a scalar; None where nothing is lifted
    lifted: ca.Function | None = None
    #: (z) -> weighted interaction cost; None where there is none
    interaction: ca.Function | None = None
    #: (z) -> in place of its second derivatives, (n, n), a positive part within agents that leaves
    #: the solver's factors sparse; None where the solver sees all of them
    interaction_blocks: ca.Function | None = None
    #: bounds of one step's decision, (m,)
    decision_lower: list[float]
    decision_upper: list[float]
    #: lower bounds of a state inside the horizon and of the last one, (n,)
    state_lower: list[float]
    final_state_lower: list[float]


class _Formulas:
    """The symbols of a problem's formulas, and the stage that these make."""

    def __init__(self, problem: Problem) -> None:
        self.t, self.lifted = ca.SX.sym("t"), ca.SX.sym("lifted")
        self.z = ca.SX.sym("z", problem.state_dim)
        self.u = ca.SX.sym("u", problem.control_dim)

    def agents(self, width: int, controls: int) -> list[tuple[ca.SX, ca.SX]]:
        """States and controls of each agent."""
        states, decisions = ca.vertsplit(self.z, width), ca.vertsplit(self.u, controls)
        return list(zip(states, decisions, strict=True))

    def stage(
        self, dynamics: list[ca.SX], running_cost: ca.SX, terminal_cost: ca.SX, **others: Any
    ) -> Stage:
        """`others` in place of controls and states without bounds, and nothing lifted."""
        t, z, u = self.t, self.z, self.u
        free = [math.inf] * max(z.numel(), u.numel())
        lowest = [-bound for bound in free]
        usual: dict[str, Any] = {
            "control": ca.Function("control", [z, u], [u]),
            "decision_lower": lowest[: u.numel()],
            "decision_upper": free[: u.numel()],
            "state_lower": lowest[: z.numel()],
            "final_state_lower": lowest[: z.numel()],
        }
        return Stage(
            dynamics=ca.Function("dynamics", [t, z, u], [ca.vertcat(*dynamics)]),
            running_cost=ca.Function("running", [t, z, u, self.lifted], [running_cost]),
            terminal_cost=ca.Function("end", [z], [terminal_cost]),
            **(usual | others),
        )


def stage_of(problem: Problem) -> Stage:
    """The CasADi expressions of `problem`. Raises TypeError for a problem without any."""
    for kind, build in _BUILDERS.items():
        if isinstance(problem, kind):
            return build(problem)
    known = ", ".join(kind.__name__ for kind in _BUILDERS)
    raise TypeError(
        f"`problem` must be one of {known} for IPOPT, got {type(problem).__name__}; "
        "transcription in torch needs no CasADi expressions"
    )


def _quadrotor(problem: Quadrotor) -> Stage:
    f, n_agents, rates = _Formulas(problem), problem.n_agents, []
    for state, control in f.agents(12, 4):
        thrust = control[0] / problem.mass
        yaw, pitch, roll = state[3], state[4], state[5]
        lean = ca.sin(pitch) * ca.cos(roll)
        rates += [
            state[6:12],
            thrust * (ca.sin(yaw) * ca.sin(roll) + ca.cos(yaw) * lean),
            thrust * (ca.sin(yaw) * lean - ca.cos(yaw) * ca.sin(roll)),
            thrust * ca.cos(pitch) * ca.cos(roll) - problem.g,
            control[1:4],
        ]
    target = ca.DM([*problem.target_position, *[0.0] * 9] * n_agents)
    return f.stage(
        rates,
        ca.exp(f.lifted),
        problem.terminal_weight / (4 * n_agents) * ca.sumsqr(f.z - target),
        # |u|^2 couples all agents' controls; one variable keeps that out of the Hessian.
        lifted=ca.Function("lifted", [f.u], [ca.sumsqr(f.u) / (2 * n_agents)]),
        interaction=_interaction(f.z, n_agents, 12, 3, problem.interaction_weight),
        interaction_blocks=_blocks(f.z, n_agents, problem.interaction_weight),
    )


def _rotor_quadrotor(problem: RotorQuadrotor) -> Stage:
    f, n_agents, g = _Formulas(problem), problem.n_agents, problem.g
    precession = problem.inertia[1] / problem.inertia[0] - 1
    rates, cost = [], ca.SX(0)
    for state, command in f.agents(12, 4):
        yaw, pitch, roll = state[3], state[4], state[5]
        velocity, turning = state[6:9], state[9:12]
        lean = ca.sin(pitch) * ca.cos(roll)
        direction = ca.vertcat(
            ca.sin(yaw) * ca.sin(roll) + ca.cos(yaw) * lean,
            ca.sin(yaw) * lean - ca.cos(yaw) * ca.sin(roll),
            ca.cos(pitch) * ca.cos(roll),
        )
        across = velocity - ca.dot(velocity, direction) * direction
        speed = 1 + problem.speed_range * ca.tanh(command / problem.speed_range)
        front, left, rear, right = ca.vertsplit(speed**2)
        drag = problem.rotor_drag * ca.sum1(speed) / 4 * across
        rates += [
            state[6:12],
            g * (front + left + rear + right) / 4 * direction - drag - ca.DM([0, 0, g]),
            problem.yaw_gain * (left + right - front - rear),
            problem.tilt_gain * (rear - front) + precession * turning[2] * turning[0],
            problem.tilt_gain * (left - right) - precession * turning[1] * turning[0],
        ]
        cost += problem.effort_weight * ca.sumsqr(command)
        cost += problem.supply_weight * ca.sum1(command) ** 2
    target = ca.DM([*problem.target_position, *[0.0] * 9] * n_agents)
    weights = ca.DM([*[1.0] * 6, *[problem.settling_time] * 6] * n_agents)
    return f.stage(
        rates,
        cost / (2 * n_agents),
        problem.terminal_weight / (4 * n_agents) * ca.sumsqr(weights * (f.z - target)),
        interaction=_interaction(f.z, n_agents, 12, 3, problem.interaction_weight),
        interaction_blocks=_blocks(f.z, n_agents, problem.interaction_weight),
    )


def _bicycle(problem: Bicycle) -> Stage:
    f, n_agents = _Formulas(problem), problem.n_agents
    rates, miss = [], ca.SX(0)
    for state, control in f.agents(4, 2):
        x, y, heading, speed = ca.vertsplit(state)
        rates += [
            speed * ca.cos(heading),
            speed * ca.sin(heading),
            speed * ca.tan(control[0]) / problem.wheelbase,
            control[1],
        ]
        miss += (x - problem.target_position[0]) ** 2 + (y - problem.target_position[1]) ** 2
    return f.stage(
        rates,
        ca.sumsqr(f.u) / 2,
        problem.terminal_weight * miss,
        # Strong enough to push the agents apart: without its curvature Newton steps go astray.
        interaction=_interaction(f.z, n_agents, 4, 2, problem.interaction_weight),
        decision_lower=[-problem.max_steering, -math.inf] * n_agents,
        decision_upper=[problem.max_steering, math.inf] * n_agents,
    )


def _consumption(problem: Consumption) -> Stage:
    f, goods, gamma = _Formulas(problem), problem.n_goods, problem.gamma
    wealth, habits, excess = f.z[0], f.z[1:], ca.SX.sym("excess", goods)
    utility = ca.sum1((f.u - habits) ** (1 - gamma)) / (1 - gamma)
    formed, worn = f.u**problem.eta, habits**problem.theta
    if problem.A is not None:
        formed = ca.mtimes(ca.DM(np.asarray(problem.A)), formed)
    if problem.B is not None:
        worn = ca.mtimes(ca.DM(np.asarray(problem.B)), worn)
    return f.stage(
        [problem.r * wealth - ca.sum1(f.u), formed - worn],
        -ca.exp(-problem.delta * f.t) * utility,
        -problem.epsilon * wealth ** (1 - gamma) / (1 - gamma),
        # The admissible controls are a box around the habit; in the excess the box is fixed.
        control=ca.Function("control", [f.z, excess], [habits + excess]),
        decision_lower=[problem.min_excess] * goods,
        decision_upper=[problem.max_excess] * goods,
        # Consumption is positive, so wealth that ends above the floor was positive throughout.
        # Below the floor the bequest is its tangent there: steep enough that nothing ends there.
        state_lower=[-math.inf] + [0.0] * goods,
        final_state_lower=[problem.wealth_floor] + [0.0] * goods,
    )


def _liquidation(problem: Liquidation) -> Stage:
    f = _Formulas(problem)
    own = (1 - problem.cross_impact) * problem.impact
    shared = problem.cross_impact * problem.impact

    def impact(x: ca.SX) -> ca.SX:
        return own * ca.sumsqr(x) + shared * ca.sum1(x) ** 2

    spread = problem.volatility**2 * (
        (1 - problem.correlation) * ca.sumsqr(f.z) + problem.correlation * ca.sum1(f.z) ** 2
    )
    if problem.covariance is not None:
        spread = ca.mtimes([f.z.T, ca.DM(np.asarray(problem.covariance)), f.z])
    cost = impact(f.u) + problem.risk_aversion * spread
    return f.stage([-f.u], cost, problem.final_rate * impact(f.z))


_BUILDERS: dict[type[Problem], Callable[..., Stage]] = {
    Quadrotor: _quadrotor,
    Bicycle: _bicycle,
    Consumption: _consumption,
    RotorQuadrotor: _rotor_quadrotor,
    Liquidation: _liquidation,
}


def _interaction(
    z: ca.SX, n_agents: int, width: int, dimension: int, weight: float
) -> ca.Function | None:
    """weight / (2N) sum_{i<j} exp(-d^2/2), without the cutoff: an upper bound of the true cost.

    The jump at d^2 = 4 has no derivative to steer by, and Newton's line search cycles across it.
    """
    if n_agents == 1 or weight == 0:
        return None
    kernels = ca.exp(-_squared_distances(z, n_agents, width, dimension) / 2)
    return ca.Function("interaction", [z], [weight / (2 * n_agents) * ca.sum1(kernels)])


def cut_interaction(problem: Problem) -> ca.Function:
    """(z, u, within (N (N - 1) / 2,)) -> the interaction of the pairs that `within` marks by 1.

    Where those are the pairs with d^2 < 4, that is the true cost; pairs i > j, i in the outer loop.
    """
    if not isinstance(problem, (Quadrotor, RotorQuadrotor, Bicycle)):
        raise TypeError(f"agents of {type(problem).__name__} do not interact")
    f = _Formulas(problem)
    n_agents, dimension = problem.n_agents, 2 if isinstance(problem, Bicycle) else 3
    squared = _squared_distances(f.z, n_agents, problem.state_dim // n_agents, dimension)
    within = ca.SX.sym("within", squared.shape[0])
    weight = problem.interaction_weight / (2 * n_agents)
    return ca.Function("cut", [f.z, f.u, within], [weight * ca.dot(within, ca.exp(-squared / 2))])


def _squared_distances(z: ca.SX, n_agents: int, width: int, dimension: int) -> ca.SX:
    positions = [z[width * i : width * i + dimension] for i in range(n_agents)]
    return ca.vertcat(
        *(ca.sumsqr(positions[i] - positions[j]) for i in range(n_agents) for j in range(i))
    )


def _blocks(z: ca.SX, n_agents: int, weight: float) -> ca.Function | None:
    """0.3 weight / (2N) sum_j exp(-d_ij^2/2) d_ij d_ij^T for every quadrotor i, in its position.

    The sum is the positive part of the interaction's second derivatives within agents: with the
    negative part, -exp(-d_ij^2/2) I, Newton's steps lead away. Where agents move together the parts
    across agents cancel it; less than a third of it serves those and single agents alike. None up
    to `_DENSE_INTERACTION_LIMIT` agents.
    """
    if n_agents <= _DENSE_INTERACTION_LIMIT:
        return None
    curvatures = [ca.SX(3, 3) for _ in range(n_agents)]
    for i in range(n_agents):
        for j in range(i):
            apart = z[12 * i : 12 * i + 3] - z[12 * j : 12 * j + 3]
            pair = ca.exp(-ca.sumsqr(apart) / 2) * ca.mtimes(apart, apart.T)
            curvatures[i] += pair
            curvatures[j] += pair
    padded = [ca.diagcat(each, ca.SX(9, 9)) for each in curvatures]
    factor = _KEPT_CURVATURE * weight / (2 * n_agents)
    return ca.Function("blocks", [z], [factor * ca.diagcat(*padded)])
