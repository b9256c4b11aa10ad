"""What of a state is drawn: paths in space where a problem has agents that move, else lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor


@dataclass(frozen=True)
class Lines:
    """Numbers against time: `values` (steps, k), one line each; a heading with its unit."""

    heading: str
    values: np.ndarray


def positions(problem: Problem, states: np.ndarray) -> np.ndarray | None:
    """Paths (steps + 1, N, 2 or 3) [m] of states (steps + 1, n); None where nothing moves.

    A problem from outside has paths if it has a method `positions(z)`: (batch, n) -> (batch, N, d)
    with d 2 or 3.
    """
    if hasattr(problem, "positions"):
        return np.asarray(problem.positions(torch.from_numpy(states)))
    width = problem.state_dim // problem.n_agents
    if isinstance(problem, Bicycle):
        return states.reshape(len(states), problem.n_agents, width)[..., :2]
    if isinstance(problem, Quadrotor) or getattr(problem, "target_position", None) is not None:
        dimension = len(problem.target_position)  # type: ignore[attr-defined]
        return states.reshape(len(states), problem.n_agents, width)[..., :dimension]
    return None


def target(problem: Problem) -> tuple[float, ...] | None:
    """Where the agents are to go, if it is one place."""
    return getattr(problem, "target_position", None)


def state_lines(problem: Problem, states: np.ndarray) -> list[Lines]:
    """The states of a problem without paths, by what they stand for."""
    if isinstance(problem, Consumption):
        return [
            Lines("wealth [money]", states[:, :1]),
            Lines("habits [money/time]", states[:, 1:]),
        ]
    width = problem.state_dim // problem.n_agents
    if width * problem.n_agents != problem.state_dim or problem.n_agents == 1:
        return [Lines(f"state {i + 1}", states[:, [i]]) for i in range(states.shape[1])]
    by_agent = states.reshape(len(states), problem.n_agents, width)
    return [Lines(f"state {i + 1} of each agent", by_agent[..., i]) for i in range(width)]


#: headings of the controls, in the order in which each agent has them
_CONTROLS: dict[type[Problem], tuple[str, ...]] = {
    Quadrotor: (
        "thrust [N]",
        *(f"{angle} acceleration [rad/s²]" for angle in ("yaw", "pitch", "roll")),
    ),
    Bicycle: ("steering [rad]", "acceleration [m/s²]"),
}


def control_lines(problem: Problem, controls: np.ndarray) -> list[Lines]:
    """The controls (steps, m), by what they stand for: one line per agent, or per good."""
    if isinstance(problem, Consumption):
        return [Lines("consumption [money/time]", controls)]
    width = problem.control_dim // problem.n_agents
    if width * problem.n_agents != problem.control_dim:
        return [Lines("controls", controls)]
    by_agent = controls.reshape(len(controls), problem.n_agents, width)
    headings = _CONTROLS.get(type(problem), ())
    if len(headings) != width:
        headings = tuple(f"control {i + 1}" for i in range(width))
    return [Lines(heading, by_agent[..., i]) for i, heading in enumerate(headings)]


def time_unit(problem: Problem) -> str:
    """The unit of time on an axis: what moves does so in metres and seconds."""
    moves = isinstance(problem, Bicycle) or getattr(problem, "target_position", None) is not None
    return " [s]" if moves else ""


def distance_lines(path: np.ndarray) -> list[Lines]:
    """How near the agents of a swarm come to each other, from their paths (steps + 1, N, d)."""
    nearest = distances(path)
    return [
        Lines("smallest distance between two agents [m]", nearest.min(axis=1, keepdims=True)),
        Lines("distance to the nearest agent [m]", nearest),
    ]


def distances(path: np.ndarray) -> np.ndarray:
    """Distance of each agent to its nearest neighbour, (steps + 1, N), from (steps + 1, N, d)."""
    apart = np.linalg.norm(path[:, :, None] - path[:, None, :], axis=-1)
    index = np.arange(path.shape[1])
    apart[:, index, index] = np.inf
    return apart.min(axis=2)
