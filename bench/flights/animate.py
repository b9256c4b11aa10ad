"""A flight as an animated SVG: vector, small, plays by itself wherever images are shown.

Agents move along their paths in real time, drawn faintly beforehand; quadrotors show how they
lean, bicycles where they head. Plain SVG animation, no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.flights.fly import Flight
from bench.flights.views import positions, target
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
    keys = _key_frames(flight.times)
    flat, depth = _projected(path)
    bodies = _bodies(problem, flight.states)
    ends = None if bodies is None else _projected(path + 0.5 * bodies)[0] - flat
    goal = target(problem)
    goals = np.empty((0, 2)) if goal is None else _projected(np.array([[goal]]))[0][0]
    scale, shift = _frame(np.concatenate([flat.reshape(-1, 2), goals]))
    flat, goals = scale * flat + shift, scale * goals + shift
    if ends is not None:  # bodies are drawn at one size, whatever the picture shows
        longest = np.linalg.norm(ends, axis=-1).max()
        ends = ends * (_BODY * _WIDTH / longest)
    total = flight.times[-1] + _HOLD
    marks = ";".join(f"{t / total:.4f}" for t in flight.times[keys]) + ";1"
    timing = f'dur="{total:.2f}s" keyTimes="{marks}" repeatCount="indefinite"'
    parts = [_opening(caption), *_trails(flat[keys])]
    parts += [_cross(goal) for goal in goals]
    for agent in np.argsort(depth[-1]):  # the nearest is drawn last
        color = _COLORS[agent % len(_COLORS)]
        legs = None if ends is None else ends[keys, agent]
        parts.append(_agent(flat[keys, agent], legs, color, timing))
    return "\n".join([*parts, _clock(flight.times[keys], timing), "</svg>", ""])


def save_animation(problem: Problem, flight: Flight, caption: str, path: Path) -> Path:
    """Write `animation` to `path`, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(animation(problem, flight, caption), encoding="utf-8")
    return path


def _key_frames(times: np.ndarray) -> np.ndarray:
    stride = max(1, round(_FRAME / (times[1] - times[0])))
    keys = np.arange(0, len(times), stride)
    return keys if keys[-1] == len(times) - 1 else np.append(keys, len(times) - 1)


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
    if not isinstance(problem, Quadrotor | Bicycle):
        return None
    width = problem.state_dim // problem.n_agents
    by_agent = states.reshape(len(states), problem.n_agents, width)
    if isinstance(problem, Bicycle):
        heading = by_agent[..., 2]
        return np.stack([np.cos(heading), np.sin(heading)], -1)
    pitch, roll = by_agent[..., 4], by_agent[..., 5]
    # An arm across the line of sight, tilted as the thrust direction tilts from the vertical.
    across = np.array([np.cos(_TURN), np.sin(_TURN)])
    lean = np.stack([np.sin(pitch) * np.cos(roll), -np.sin(roll)], -1) @ across
    level = np.sqrt(1 - np.clip(lean, -1, 1) ** 2)
    return np.stack([level * across[0], level * across[1], -lean], -1)


def _frame(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift that fit `points` into the picture, equal in both directions."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    return scale, np.array([_WIDTH, _HEIGHT]) / 2 - scale * (low + high) / 2


def _opening(caption: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{caption}" font-family="system-ui, sans-serif" fill="none">\n'
        f"<title>{caption}</title>\n"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    )


def _trails(flat: np.ndarray) -> list[str]:
    """Every path, faint."""
    return [
        f'<path d="M{_points(flat[:, agent])}" stroke="{_COLORS[agent % len(_COLORS)]}" '
        f'stroke-opacity="0.22" stroke-width="1"/>'
        for agent in range(flat.shape[1])
    ]


def _agent(path: np.ndarray, legs: np.ndarray | None, color: str, timing: str) -> str:
    """A dot, or a body that turns, moving along `path`; the last key frame stays."""
    steps = [*range(len(path)), len(path) - 1]
    if legs is None:
        values = [";".join(f"{path[i, axis]:.1f}" for i in steps) for axis in (0, 1)]
        moves = "".join(
            f'<animate attributeName="{name}" values="{value}" {timing}/>'
            for name, value in zip(("cx", "cy"), values, strict=True)
        )
        return f'<circle r="4" fill="{color}">{moves}</circle>'
    shapes = ";".join(
        f"M{_points(np.stack([path[i] - legs[i], path[i] + legs[i]]))}" for i in steps
    )
    return (
        f'<path stroke="{color}" stroke-width="3.2" stroke-linecap="round">'
        f'<animate attributeName="d" values="{shapes}" {timing}/></path>'
    )


def _cross(goal: Sequence[float]) -> str:
    x, y = goal
    return (
        f'<path d="M{x - 6:.1f},{y - 6:.1f}L{x + 6:.1f},{y + 6:.1f}M{x - 6:.1f},{y + 6:.1f}'
        f'L{x + 6:.1f},{y - 6:.1f}" stroke="#222222" stroke-width="2"/>'
    )


def _clock(times: np.ndarray, timing: str) -> str:
    """A bar along the lower edge that grows with the time of the flight."""
    ends = [f"{(_WIDTH - 2 * _MARGIN) * t / times[-1]:.1f}" for t in times]
    values = ";".join([*ends, ends[-1]])
    y = _HEIGHT - 14
    return (
        f'<rect x="{_MARGIN}" y="{y}" height="3" fill="#555555">'
        f'<animate attributeName="width" values="{values}" {timing}/></rect>'
        f'<text x="{_WIDTH - _MARGIN}" y="{y - 6}" text-anchor="end" font-size="12" '
        f'fill="#555555">{times[-1]:g} s</text>'
    )


def _points(points: np.ndarray) -> str:
    return "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
