"""A flight as an animated SVG: vector, small, plays by itself wherever images are shown.

Agents move along their paths in real time, drawn faintly beforehand; quadrotors show how they
lean, bicycles where they head. Plain SVG animation, no script.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from bench.flights.fly import Flight
from bench.flights.views import by_agent, positions, target
from jfbcore.problems import Bicycle, Problem, Quadrotor

_WIDTH, _HEIGHT, _MARGIN = 640, 440, 34
#: seconds between key frames, and how long the last one stays
_FRAME, _HOLD = 0.14, 1.2
#: length of a quadrotor's arms and of a bicycle, as a share of the picture's width
_BODY = 0.016
#: colours safe for colour-blind readers, dealt to the agents in turn
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
#: from where one looks at flights in space: turned by and raised by these angles [rad]
_TURN, _RAISE = -2.2, 0.42


def animation(problem: Problem, flight: Flight, caption: str) -> str:
    """The text of an SVG file; ValueError where the problem has nothing that moves."""
    path = positions(problem, flight.states)
    if path is None:
        raise ValueError(f"`animate` needs agents that move, and {problem.name} has none")
    times, goal = flight.times, target(problem)
    keys = np.arange(0, len(times), max(1, round(_FRAME / (times[1] - times[0]))))
    keys = np.union1d(keys, [len(times) - 1])
    flat, depth = _projected(path)
    goals = np.empty((0, 2)) if goal is None else _projected(np.array([goal]))[0]
    scale, shift = _frame(np.concatenate([flat.reshape(-1, 2), goals]))
    bodies = _bodies(problem, flight.states)
    frames = [*keys, keys[-1]]  # the last key frame stays
    agents = []
    for agent in range(flat.shape[1]):
        moves = (scale * flat[:, agent] + shift)[frames]
        agents.append(
            {
                "path": moves[:-1],
                "moves": moves,
                "depth": depth[-1, agent],
                "color": _COLORS[agent % len(_COLORS)],
                "bodies": None,
            }
        )
    if bodies is not None:  # drawn at one size, whatever the picture shows
        ends = _projected(path + 0.5 * bodies)[0] - flat
        ends *= _BODY * _WIDTH / np.linalg.norm(ends, axis=-1).max()
        for own, legs in zip(agents, np.moveaxis(ends[frames], 1, 0), strict=True):
            own["bodies"] = np.stack([own["moves"] - legs, own["moves"] + legs], 1)
    total = times[-1] + _HOLD
    marks = ";".join(f"{t / total:.4f}" for t in times[keys])
    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    return jinja.get_template("animation.svg").render(
        caption=caption,
        agents=agents,
        goals=scale * goals + shift,
        clock=(_WIDTH - 2 * _MARGIN) * times[frames] / times[-1],
        seconds=times[-1],
        timing=Markup(f'dur="{total:.2f}s" keyTimes="{marks};1" repeatCount="indefinite"'),
        **{"width": _WIDTH, "height": _HEIGHT, "margin": _MARGIN},
    )


def save_animation(problem: Problem, flight: Flight, caption: str, path: Path) -> Path:
    """Write `animation` to `path`, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(animation(problem, flight, caption) + "\n", encoding="utf-8")
    return path


def _projected(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, 2 or 3) as seen, x to the right and y down, and how near each point is."""
    if path.shape[-1] == 2:
        return path * (1.0, -1.0), np.zeros(path.shape[:-1])
    x, y, z = np.moveaxis(path, -1, 0)
    right = np.cos(_TURN) * x + np.sin(_TURN) * y
    away = -np.sin(_TURN) * x + np.cos(_TURN) * y
    up = np.cos(_RAISE) * z + np.sin(_RAISE) * away
    return np.stack([right, -up], -1), np.cos(_RAISE) * -away + np.sin(_RAISE) * z


def _bodies(problem: Problem, states: np.ndarray) -> np.ndarray | None:
    """A vector along each agent's body, (steps + 1, N, d): a rotor arm or a heading."""
    if isinstance(problem, Bicycle):
        heading = by_agent(problem, states)[..., 2]
        return np.stack([np.cos(heading), np.sin(heading)], -1)
    if not isinstance(problem, Quadrotor):
        return None
    pitch, roll = np.moveaxis(by_agent(problem, states)[..., 4:6], -1, 0)
    # An arm across the line of sight, tilted as the thrust direction tilts from the vertical.
    across = np.array([np.cos(_TURN), np.sin(_TURN)])
    lean = np.stack([np.sin(pitch) * np.cos(roll), -np.sin(roll)], -1) @ across
    level = np.sqrt(1 - np.clip(lean, -1, 1) ** 2)
    return np.stack([level * across[0], level * across[1], -lean], -1)


def _frame(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift that fit `points` into the picture, equal in both directions."""
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.array([_WIDTH, _HEIGHT])
    scale = float(((size - 2 * _MARGIN) / np.maximum(high - low, 1e-9)).min())
    return scale, size / 2 - scale * (low + high) / 2
