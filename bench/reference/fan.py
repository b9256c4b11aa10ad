"""Bicycles that fan out: a start from which a strong interaction cost can be avoided.

Agents that start together and head for one target stay together when started from their own
optima: a saddle, because their interaction pushes them apart only once they are apart.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bench.reference.starts import Guess
from jfbcore.problems import Bicycle

#: how far the arcs bow, relative to the way; the first is the best single choice
SPREADS = (1.5, 0.8)


def fanned_controls(problem: Bicycle, states: Tensor, spread: float) -> Tensor:
    """Controls (batch, n_steps, 2 N) that steer every agent along its own arc to the target.

    The arcs bow sideways by up to `spread` times the way to the target, evenly over the agents
    in the order in which they start, leftmost furthest left. Speed and heading of an arc are
    followed from where the clamped steering has led, so the controls are admissible.
    """
    agents = states.view(len(states), problem.n_agents, 4)
    target = states.new_tensor(problem.target_position)
    start, h, steps = agents[..., :2], problem.time_step, problem.n_steps
    way = target - start
    sideways = torch.stack((-way[..., 1], way[..., 0]), -1)
    # Rank by the position across the mean way, from -1 (right) to 1 (left).
    across = (start * sideways.mean(1, keepdim=True)).sum(-1)
    rank = across.argsort(1).argsort(1).to(states.dtype)
    bow = spread * (2 * rank / max(1, problem.n_agents - 1) - 1)

    def arc(step: int) -> Tensor:
        tau = min(step / steps, 1.0)
        return start + tau * way + (bow * math.sin(math.pi * tau))[..., None] * sideways

    position, heading, speed = start, agents[..., 2], agents[..., 3]
    controls = []
    for i in range(steps):
        unit = torch.stack((heading.cos(), heading.sin()), -1)
        position = position + h * speed[..., None] * unit
        # This step's control shows in the position two steps ahead.
        leg = arc(i + 2) - position
        turn = torch.atan2(leg[..., 1], leg[..., 0]) - heading
        turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
        pace = speed.clamp_min(1e-3) * h / problem.wheelbase
        steering = (turn / pace).atan().clamp(-problem.max_steering, problem.max_steering)
        # Half way to the arc's pace per step, lest the agent jerk from stop to speed.
        change = 0.5 * (leg.norm(dim=-1) / h - speed)
        heading = heading + speed * h / problem.wheelbase * steering.tan()
        speed = speed + change
        controls.append(torch.stack((steering, change / h), -1).flatten(1))
    return torch.stack(controls, 1)


def fanned_guesses(problem: Bicycle, state: Tensor) -> list[Guess]:
    """`fanned_controls` of one initial state (n,) and where they lead, one per spread."""
    guesses = []
    for spread in SPREADS:
        controls = fanned_controls(problem, state[None], spread)
        z, reached = state[None], []
        for i in range(problem.n_steps):
            z = z + problem.time_step * problem.dynamics(i * problem.time_step, z, controls[:, i])
            reached.append(z[0].numpy())
        guesses.append(Guess(states=np.stack(reached), decisions=controls[0].numpy()))
    return guesses
