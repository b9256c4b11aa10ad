"""One agent's share of a problem: the building block of starts and preconditioners."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jfbcore.problems import Consumption, Problem


def parameters(problem: Problem) -> dict[str, Any]:
    """The problem's constructor arguments as it stores them; size, dtype and device left out.

    An argument that is None stands for a formula without it, and is left out like one that a
    problem does not have: its discretisation is the same.
    """
    names = inspect.signature(type(problem).__init__).parameters
    left_out = {"self", "n_agents", "n_goods", "n_assets", "dtype", "device"}
    stored = {name: getattr(problem, name) for name in names if name not in left_out}
    return {name: value for name, value in stored.items() if value is not None}


def one_agent(problem: Problem) -> Problem:
    """The problem of a single agent, or of a single good with its share of the wealth.

    Quadrotors and bicycles couple weakly, so the same problem with one agent is a good model of
    each. Goods share one purse: a good with 1/m of it meets the same marginal bequest when the
    bequest weight is multiplied by m^-gamma, because (m x)^-gamma is the derivative there. Habits
    that form each other's are each given what it is if all goods are consumed alike, on average.
    """
    keywords = parameters(problem)
    if isinstance(problem, Consumption):
        goods = problem.n_goods
        keywords["initial_wealth"] = problem.initial_wealth / goods
        keywords["wealth_floor"] = problem.wealth_floor / goods
        keywords["epsilon"] = problem.epsilon * goods**-problem.gamma
        for name in keywords.keys() & {"A", "B"}:
            keywords[name] = [[math.fsum(map(math.fsum, keywords[name])) / goods]]
    keywords.pop("covariance", None)  # of all assets; one has the variance of its volatility
    # Every concrete problem takes `n_agents`; the base class has no constructor of its own size.
    kind: Callable[..., Problem] = type(problem)
    return kind(n_agents=1, dtype=problem.dtype, device=problem.device, **keywords)


def agent_states(problem: Problem, states: Tensor) -> Tensor:
    """Initial states (batch, n) of the whole as those of `one_agent`, (batch * N, n_single)."""
    if not isinstance(problem, Consumption):
        return states.reshape(len(states) * problem.n_agents, -1)
    share = (states[:, :1] / problem.n_goods).expand(-1, problem.n_goods)
    return torch.stack((share, states[:, 1:]), -1).flatten(0, 1)
