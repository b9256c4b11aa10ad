"""Free variables for the controls, so that an unconstrained method respects their bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reference.solution import open_loop_cost
from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor


@dataclass(frozen=True)
class Parametrisation:
    """Free decisions that are the controls themselves; right for unconstrained controls."""

    def first_guess(self, problem: Problem, states: Tensor) -> Tensor:
        """Decisions (batch, n_steps, m) to start a problem of one agent from."""
        guess = problem.initial_control(0.0, states).unsqueeze(1).repeat(1, problem.n_steps, 1)
        if isinstance(problem, Quadrotor):
            # One long lean towards the target, thrust reversed half way: the cheaper of two
            # kinds of optimum, see `starts`. The lean is A (1 - cos(2 pi t / T)) / 2.
            turn = torch.linspace(0, 2 * math.pi, problem.n_steps, dtype=states.dtype).cos()
            size = 2 * (math.pi / problem.t_final) ** 2
            towards = (states.new_tensor(problem.target_position) - states[:, :3]).sign()
            guess[..., 0] = problem.mass * problem.g * turn
            guess[..., 2] = 0.9 * size * turn * towards[:, :1]
            guess[..., 3] = -0.6 * size * turn * towards[:, 1:2]
        return guess

    def controls(self, problem: Problem, states: Tensor, decisions: Tensor) -> Tensor:
        """Controls (batch, n_steps, m) of decisions of the same shape."""
        return decisions

    def decisions(self, problem: Problem, states: Tensor, controls: Tensor) -> Tensor:
        """The inverse of `controls`, (batch, n_steps, m)."""
        return controls

    def cost(self, problem: Problem, states: Tensor, decisions: Tensor) -> Tensor:
        """Cost of the rollout, (batch,), differentiable in the decisions."""
        return open_loop_cost(problem, states, self.controls(problem, states, decisions))


class BoundedSteering(Parametrisation):
    """Steering = max_steering * tanh(decision / max_steering): smooth, and slope 1 at zero."""

    def controls(self, problem: Bicycle, states: Tensor, decisions: Tensor) -> Tensor:
        bound = problem.max_steering
        steering = bound * (decisions[..., ::2] / bound).tanh()
        return torch.stack((steering, decisions[..., 1::2]), -1).flatten(2)

    def decisions(self, problem: Bicycle, states: Tensor, controls: Tensor) -> Tensor:
        bound = problem.max_steering
        # tanh reaches its bound at infinity only
        inside = (controls[..., ::2] / bound).clamp(-0.999, 0.999)
        return torch.stack((bound * inside.atanh(), controls[..., 1::2]), -1).flatten(2)


class LogExcess(Parametrisation):
    """u = habit + exp(decision), the excess held within its bounds."""

    def first_guess(self, problem: Consumption, states: Tensor) -> Tensor:
        # Two thirds of the even spending plan, so that wealth stays positive with the habits.
        level = torch.full_like(states[:, 1:], 2.0 / 3.0 * problem.nominal_excess).log()
        return level.unsqueeze(1).repeat(1, problem.n_steps, 1)

    def controls(self, problem: Consumption, states: Tensor, decisions: Tensor) -> Tensor:
        return self._rollout(problem, states, decisions)[0]

    def decisions(self, problem: Consumption, states: Tensor, controls: Tensor) -> Tensor:
        z, excess = states, []
        for i in range(problem.n_steps):
            excess.append(controls[:, i] - z[:, 1:])
            z = z + problem.time_step * problem.dynamics(i * problem.time_step, z, controls[:, i])
        return torch.stack(excess, 1).clamp_min(problem.min_excess).log()

    def cost(self, problem: Consumption, states: Tensor, decisions: Tensor) -> Tensor:
        return self._rollout(problem, states, decisions)[1]

    def _rollout(
        self, problem: Consumption, states: Tensor, decisions: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The habit moves along the trajectory, so controls exist only together with it.
        h, z, cost = problem.time_step, states, states.new_zeros(len(states))
        excess = decisions.exp().clamp(problem.min_excess, problem.max_excess)
        controls = []
        for i in range(problem.n_steps):
            u = z[:, 1:] + excess[:, i]
            controls.append(u)
            cost = cost + h * problem.running_cost(i * h, z, u)
            z = z + h * problem.dynamics(i * h, z, u)
        return torch.stack(controls, 1), cost + problem.terminal_cost(z)


def parametrisation_of(problem: Problem) -> Parametrisation:
    """The parametrisation that keeps the problem's controls admissible."""
    if isinstance(problem, Consumption):
        return LogExcess()
    return BoundedSteering() if isinstance(problem, Bicycle) else Parametrisation()
