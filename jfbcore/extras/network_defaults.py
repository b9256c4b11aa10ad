"""Sizes and units of the networks that are made for a problem.

They are no part of the mathematics of a problem: arXiv 2602.00921 used them, or they train well.
`network_defaults(problem)` looks a problem up by its type; a package with problems of its own adds
them with `@network_defaults.register`. Whatever makes a network takes each value as a keyword too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor, RotorQuadrotor


@dataclass(frozen=True, kw_only=True)
class NetworkScaling:
    """Units for a value network: it sees z/state and returns multiples of `value`.

    `state` is one unit for all coordinates or one for each.
    """

    state: float | tuple[float, ...]
    value: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NetworkDefaults:
    """What networks for one problem are made of.

    `width`, `depth`: of the residual network. `scaling`: its units where states or values are far
    from order one. `agent_share`: the share of one agent's own cost in the total, where the agents
    are identical; None elsewhere. `agent_units`: units of one agent's state for networks that tell
    agents apart; None where all coordinates are near one.
    """

    width: int = 96
    depth: int = 3
    scaling: NetworkScaling | None = None
    agent_share: float | None = None
    agent_units: tuple[float, ...] | None = None


@functools.singledispatch
def network_defaults(problem: Problem) -> NetworkDefaults:
    """The defaults for `problem`: a network that suits states and values of order one."""
    return NetworkDefaults()


@network_defaults.register
def _(problem: Quadrotor) -> NetworkDefaults:
    return NetworkDefaults(width=96, agent_share=1.0 / problem.n_agents)


@network_defaults.register
def _(problem: RotorQuadrotor) -> NetworkDefaults:
    # A costate of order one of an angular rate would command rotors to their limits.
    units = (*(1.0,) * 6, *(2.0,) * 3, *(10.0,) * 3)
    scaling, share = NetworkScaling(state=units * problem.n_agents), 1.0 / problem.n_agents
    return NetworkDefaults(width=96, scaling=scaling, agent_share=share, agent_units=units)


@network_defaults.register
def _(problem: Bicycle) -> NetworkDefaults:
    # Steering follows kappa = p_psi v / l: with a heading in units of 1/l, a costate of order one
    # asks for a steering of order one, as it does of the other coordinates' controls.
    units = (1.0, 1.0, 1.0 / problem.wheelbase, 1.0)
    return NetworkDefaults(width=100, agent_share=1.0, agent_units=units)


@network_defaults.register
def _(problem: Consumption) -> NetworkDefaults:
    # States in units of the initial wealth, costates in nominal marginal utilities.
    marginal = problem.nominal_excess**-problem.gamma
    wealth = problem.initial_wealth
    return NetworkDefaults(width=50, scaling=NetworkScaling(state=wealth, value=marginal * wealth))
