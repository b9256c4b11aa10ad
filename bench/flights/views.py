"""What of a state is drawn: paths in space where a problem has agents that move, else lines."""

from __future__ import annotations

import numpy as np
import torch

from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor

#: headings of the controls, in the order in which each agent has them
_CONTROLS: dict[type[Problem], tuple[str, ...]] = {
    Quadrotor: (
        "thrust [N]",
        *(f"{angle} acceleration [rad/s²]" for angle in ("yaw", "pitch", "roll")),
    ),
    Bicycle: ("steering [rad]", "acceleration [m/s²]"),
}


#: numbers against time by a heading with their unit, (steps, k): a line for each of k
Lines = dict[str, np.ndarray]


def by_agent(problem: Problem, values: np.ndarray) -> np.ndarray:
    """States or controls (steps, k) as (steps, N, k / N)."""
    return values.reshape(len(values), problem.n_agents, -1)


def positions(problem: Problem, states: np.ndarray) -> np.ndarray | None:
    """Paths (steps + 1, N, 2 or 3) [m] of states (steps + 1, n); None where nothing moves.

    A problem from outside has paths if it has a method `positions(z)`: (batch, n) -> (batch, N, d)
    with d 2 or 3.
    """
    if hasattr(problem, "positions"):
        return np.asarray(problem.positions(torch.from_numpy(states)))
    goal = target(problem)
    return None if goal is None else by_agent(problem, states)[..., : len(goal)]


def target(problem: Problem) -> tuple[float, ...] | None:
    """Where the agents are to go, if it is one place."""
    return getattr(problem, "target_position", None)


def state_lines(problem: Problem, states: np.ndarray) -> Lines:
    """The states of a problem without paths, by what they stand for."""
    if isinstance(problem, Consumption):
        return {"wealth [money]": states[:, :1], "habits [money/time]": states[:, 1:]}
    if states.shape[1] % problem.n_agents or problem.n_agents == 1:
        return {f"state {i + 1}": states[:, [i]] for i in range(states.shape[1])}
    own = np.moveaxis(by_agent(problem, states), -1, 0)
    return {f"state {i} of each agent": values for i, values in enumerate(own, 1)}


def control_lines(problem: Problem, controls: np.ndarray) -> Lines:
    """The controls (steps, m), by what they stand for: one line per agent, or per good."""
    if isinstance(problem, Consumption):
        return {"consumption [money/time]": controls}
    if controls.shape[1] % problem.n_agents:
        return {"controls": controls}
    own = np.moveaxis(by_agent(problem, controls), -1, 0)
    headings = _CONTROLS.get(type(problem), ())
    if len(headings) != len(own):
        headings = tuple(f"control {i + 1}" for i in range(len(own)))
    return dict(zip(headings, own, strict=True))


def time_unit(problem: Problem) -> str:
    """The unit of time on an axis: what moves does so in metres and seconds."""
    return "" if target(problem) is None else " [s]"


def distance_lines(path: np.ndarray) -> Lines:
    """How near the agents of a swarm come to each other, from their paths (steps + 1, N, d)."""
    apart = np.linalg.norm(path[:, :, None] - path[:, None, :], axis=-1)
    index = np.arange(path.shape[1])
    apart[:, index, index] = np.inf
    nearest = apart.min(axis=2)
    smallest = nearest.min(axis=1, keepdims=True)
    names = ("smallest distance between two agents [m]", "distance to the nearest agent [m]")
    return dict(zip(names, (smallest, nearest), strict=True))
