"""Starting points: for IPOPT trajectories that need not obey the dynamics, for others controls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.reference.solution import fly
from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor

#: starts tried per state unless told otherwise
_STARTS = 6
#: bow of the path sideways, relative to its length; extra full turns; driven backwards
_BICYCLE_PATHS = (
    (0.0, 0, False),
    (0.4, 0, False),
    (-0.4, 0, False),
    (0.0, -1, False),
    (0.0, 1, False),
    (0.0, 0, True),
)
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
#: how far the arcs of bicycles that fan out bow, relative to the way; the first is the best single
#: choice
SPREADS = (1.5, 0.8)


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
        paths = _BICYCLE_PATHS[: count or _STARTS]
        guesses = [_bicycle(problem, state.numpy(), *path) for path in paths]
    elif isinstance(problem, Quadrotor):
        leans = _QUADROTOR_LEANS[: count or _STARTS]
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
    agents = state.reshape(-1, 4)
    way = np.array(problem.target_position) - agents[:, :2]
    guess = arcs(problem, agents, bow * np.stack([-way[:, 1], way[:, 0]], axis=1))
    states = guess.states.reshape(problem.n_steps, -1, 4)
    states[..., 2] += 2 * math.pi * turns
    if backwards:
        states[..., 2] -= math.pi
        states[..., 3] *= -1
    return guess


def arcs(problem: Bicycle, agents: np.ndarray, out: np.ndarray) -> Guess:
    """Paths of `agents` (N, 4) that swing out by `out` (N, 2) [m] on their way to the target."""
    tau = np.linspace(0, 1, problem.n_steps + 1)[1:, None, None]
    way = np.array(problem.target_position) - agents[:, :2]
    path = agents[:, :2] + tau * way + np.sin(math.pi * tau) * out
    tangent = way + math.pi * np.cos(math.pi * tau) * out
    heading = np.concatenate([agents[None, :, 2], np.arctan2(tangent[..., 1], tangent[..., 0])])
    heading = np.unwrap(heading, axis=0)[1:]
    speed = np.linalg.norm(tangent, axis=-1) / problem.t_final
    states = np.concatenate([path, heading[..., None], speed[..., None]], axis=2)
    decisions = np.zeros((problem.n_steps, 2 * len(agents)))
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


def fanned(problem: Bicycle, states: Tensor, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bicycles that fan out, each on an arc of its own: states, controls and costs, as `fly` says.

    A start from which a strong interaction cost can be avoided: agents that start together and head
    for one target stay together when started from their own optima, a saddle, because their
    interaction pushes them apart only once they are apart. The arcs bow sideways by up to `spread`
    times the way to the target, evenly over the agents in the order in which they start, leftmost
    furthest left. Steering is clamped, so that the controls are admissible.
    """
    h, steps, shape = problem.time_step, problem.n_steps, (len(states), problem.n_agents, 4)
    start = states.view(shape)[..., :2]
    way = states.new_tensor(problem.target_position) - start
    sideways = torch.stack((-way[..., 1], way[..., 0]), -1)
    # Rank by the position across the mean way, from -1 (right) to 1 (left).
    across = (start * sideways.mean(1, keepdim=True)).sum(-1)
    rank = across.argsort(1).argsort(1).to(states.dtype)
    bow = spread * (2 * rank / max(1, problem.n_agents - 1) - 1)

    def arc(step: int) -> Tensor:
        tau = min(step / steps, 1.0)
        return start + tau * way + (bow * math.sin(math.pi * tau))[..., None] * sideways

    def control(i: int, z: Tensor) -> Tensor:
        agents = z.view(shape)
        heading, speed = agents[..., 2], agents[..., 3]
        unit = torch.stack((heading.cos(), heading.sin()), -1)
        # This step's control shows in the position two steps ahead.
        leg = arc(i + 2) - (agents[..., :2] + h * speed[..., None] * unit)
        turn = torch.atan2(leg[..., 1], leg[..., 0]) - heading
        turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
        pace = speed.clamp_min(1e-3) * h / problem.wheelbase
        steering = (turn / pace).atan().clamp(-problem.max_steering, problem.max_steering)
        # Half way to the arc's pace per step, lest the agent jerk from stop to speed.
        change = 0.5 * (leg.norm(dim=-1) / h - speed)
        return torch.stack((steering, change / h), -1).flatten(1)

    return fly(problem, states, control)


def first_controls(problem: Problem, states: Tensor) -> list[Tensor]:
    """Controls (batch, n_steps, m) to start a problem of one agent from."""
    still = problem.initial_control(0.0, states).unsqueeze(1).repeat(1, problem.n_steps, 1)
    if isinstance(problem, Consumption):
        # Two thirds of the even spending plan, so that wealth stays positive with the habits.
        excess = 2.0 / 3.0 * problem.nominal_excess
        return [fly(problem, states, lambda i, z: z[:, 1:] + excess)[1]]
    target = states.new_tensor(getattr(problem, "target_position", ()))
    if isinstance(problem, Quadrotor):
        # One long lean towards the target, A (1 - cos(2 pi t / T)) / 2 [rad], with the thrust
        # reversed half way: the cheaper of two kinds of optimum.
        turn = torch.linspace(0, 2 * math.pi, problem.n_steps, dtype=states.dtype).cos()
        size = 2 * (math.pi / problem.t_final) ** 2
        towards = (target - states[:, :3]).sign()
        guesses = []
        for lean_x, lean_y in ((0.9, 0.6), (0.9, 0.0), (0.0, 0.9)):
            guess = still.clone()
            guess[..., 0] = problem.mass * problem.g * turn
            guess[..., 2] = lean_x * size * turn * towards[:, :1]
            guess[..., 3] = -lean_y * size * turn * towards[:, 1:2]
            guesses.append(guess)
        return guesses
    if isinstance(problem, Bicycle):
        # Turn to the target in the first fifth of the time, and speed up to reach it in time.
        way = target - states[:, :2]
        distance, bearing = way.norm(dim=1), torch.atan2(way[:, 1], way[:, 0])
        cruise = distance / problem.t_final
        first = max(1, problem.n_steps // 5)
        turn = (bearing - states[:, 2]) / (first * problem.time_step)
        aimed = still.clone()
        aimed[:, :first, 0] = torch.atan(turn * problem.wheelbase / cruise)[:, None]
        aimed[..., 1] = (2 * (cruise - states[:, 3]) / problem.t_final)[:, None]
        return [aimed, still]
    return [still]
