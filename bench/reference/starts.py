"""Starting points for IPOPT: trajectories that need not obey the dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor

#: starts tried per state for bicycles unless told otherwise
BICYCLE_STARTS = 6
#: bow of the path sideways, relative to its length; extra full turns; driven backwards
_BICYCLE_PATHS = (
    (0.0, 0, False),
    (0.4, 0, False),
    (-0.4, 0, False),
    (0.0, -1, False),
    (0.0, 1, False),
    (0.0, 0, True),
)
#: starts tried per state for quadrotors unless told otherwise
QUADROTOR_STARTS = 6
#: yaw, and tilt towards the target in its x and y direction, all in rad at mid-flight. Optima
#: come in two kinds: one long lean with the thrust reversed half way, and a lean each way. The
#: first is usually the cheaper, and hovering leads to the second.
_QUADROTOR_LEANS = (
    (0.0, 0.9, 0.6),
    (0.0, 0.0, 0.0),
    (0.0, 0.8, 0.0),
    (0.0, 0.0, 0.8),
    (0.8, 0.4, -0.4),
    (0.0, -0.9, -0.6),
    (2.5, 0.0, 0.0),
)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """`states` (n_steps, n) after each step and `decisions` (n_steps, m) taken at each."""

    states: np.ndarray
    decisions: np.ndarray


def starting_guesses(
    problem: Problem, state: Tensor, count: int | None, *, seed: int
) -> list[Guess]:
    """`count` starting points for one initial state (n,), the most natural first.

    None means 6 for bicycles and quadrotors and 1 elsewhere. Beyond the listed ones, starts are
    the first with a smooth random change of its decisions and states drawn from `seed`.
    """
    if isinstance(problem, Bicycle):
        paths = _BICYCLE_PATHS[: count or BICYCLE_STARTS]
        guesses = [_bicycle(problem, state.numpy(), *path) for path in paths]
    elif isinstance(problem, Quadrotor):
        leans = _QUADROTOR_LEANS[: count or QUADROTOR_STARTS]
        guesses = [_quadrotor(problem, state.numpy(), *lean) for lean in leans]
    else:
        guesses = [_constant(problem, state)]
    random = np.random.default_rng(seed)
    wanted = count or len(guesses)
    return guesses + [_perturbed(guesses[0], random) for _ in range(wanted - len(guesses))]


def _constant(problem: Problem, state: Tensor) -> Guess:
    """The initial state throughout; for consumption the even spending plan."""
    decision = problem.initial_control(0.0, state[None])[0].numpy().copy()
    if isinstance(problem, Consumption):
        decision -= state[1:].numpy()  # the decision is the excess over the habit
    steps = problem.n_steps
    return Guess(
        states=np.repeat(state.numpy()[None], steps, axis=0),
        decisions=np.repeat(decision[None], steps, axis=0),
    )


def _quadrotor(
    problem: Quadrotor, state: np.ndarray, yaw: float, lean_x: float, lean_y: float
) -> Guess:
    """Every agent on a straight line to the target, leaning on the way, at hovering thrust."""
    tau = np.linspace(0, 1, problem.n_steps + 1)[1:, None, None]
    agents = state.reshape(-1, 12)
    target = np.concatenate([problem.target_position, np.zeros(9)])
    states = agents + tau * (target - agents)
    towards = np.sign(target[:2] - agents[:, :2])
    lean = np.stack(
        [np.full(len(agents), yaw), lean_x * towards[:, 0], -lean_y * towards[:, 1]], axis=1
    )
    states[..., 3:6] += np.sin(math.pi * tau) * lean
    decisions = np.zeros((problem.n_steps, problem.control_dim))
    decisions[:, ::4] = problem.mass * problem.g
    return Guess(states=states.reshape(problem.n_steps, -1), decisions=decisions)


def _bicycle(problem: Bicycle, state: np.ndarray, bow: float, turns: int, backwards: bool) -> Guess:
    """Every agent on an arc to the target at constant speed, with zero control."""
    tau = np.linspace(0, 1, problem.n_steps + 1)[1:, None]
    agents = state.reshape(-1, 4)
    way = np.array(problem.target_position) - agents[:, :2]
    sideways = np.stack([-way[:, 1], way[:, 0]], axis=1)
    path = agents[:, :2] + tau[..., None] * way + bow * np.sin(math.pi * tau)[..., None] * sideways
    tangent = way + bow * math.pi * np.cos(math.pi * tau)[..., None] * sideways
    heading = np.arctan2(tangent[..., 1], tangent[..., 0]) + 2 * math.pi * turns
    speed = np.linalg.norm(tangent, axis=-1) / problem.t_final
    if backwards:
        heading, speed = heading - math.pi, -speed
    states = np.concatenate([path, heading[..., None], speed[..., None]], axis=2)
    decisions = np.zeros((problem.n_steps, problem.control_dim))
    return Guess(states=states.reshape(problem.n_steps, -1), decisions=decisions)


def _perturbed(guess: Guess, random: np.random.Generator) -> Guess:
    steps, width = guess.states.shape
    wave = np.sin(math.pi * np.linspace(0, 1, steps))[:, None]
    shift = 0.3 * wave * random.standard_normal(width)
    # Multiplicative, so that positive states and decisions stay positive.
    factor = np.exp(0.3 * wave * random.standard_normal(guess.decisions.shape[1]))
    positive = (guess.states > 0).all()
    states = guess.states * np.exp(0.1 * shift) if positive else guess.states + shift
    return Guess(states=states, decisions=guess.decisions * factor)
