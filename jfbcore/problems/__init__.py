"""Optimal-control problems. A new problem is one file here and one line in `PROBLEMS`."""

from __future__ import annotations

from collections.abc import Callable

from jfbcore.problems.base import Hamiltonian, Problem
from jfbcore.problems.bicycle import Bicycle
from jfbcore.problems.consumption import Consumption
from jfbcore.problems.interaction import interaction_cost
from jfbcore.problems.liquidation import Liquidation
from jfbcore.problems.quadrotor import Quadrotor
from jfbcore.problems.rotor_quadrotor import RotorQuadrotor

#: problems by the name used on the command line; each constructor takes `n_agents`
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "quadrotor": Quadrotor,
    "bicycle": Bicycle,
    "consumption": Consumption,
    "rotor-quadrotor": RotorQuadrotor,
    "liquidation": Liquidation,
}

__all__ = [
    "PROBLEMS",
    "Bicycle",
    "Consumption",
    "Hamiltonian",
    "Liquidation",
    "Problem",
    "Quadrotor",
    "RotorQuadrotor",
    "interaction_cost",
]
