"""Free variables for the controls, so that an unconstrained method respects their bounds."""

from __future__ import annotations

import abc
import math
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bench.reference.solution import open_loop_cost
from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor

P = TypeVar("P", bound=Problem)


class Parametrisation(abc.ABC, Generic[P]):
    """A map from free decisions, (batch, n_steps, m), to admissible controls of one problem."""

    @abc.abstractmethod
    def first_guesses(self, problem: P, states: Tensor) -> list[Tensor]:
        """Decisions (batch, n_steps, m) to start a problem of one agent from."""

    @abc.abstractmethod
    def controls(self, problem: P, states: Tensor, decisions: Tensor) -> Tensor:
        """Controls (batch, n_steps, m) of decisions of the same shape."""

    @abc.abstractmethod
    def decisions(self, problem: P, states: Tensor, controls: Tensor) -> Tensor:
        """The inverse of `controls`, (batch, n_steps, m)."""

    def cost(self, problem: P, states: Tensor, decisions: Tensor) -> Tensor:
        """Cost of the rollout, (batch,), differentiable in the decisions."""
        return open_loop_cost(problem, states, self.controls(problem, states, decisions))


class Unbounded(Parametrisation[Problem]):
    """Decisions that are the controls themselves."""

    def first_guesses(self, problem: Problem, states: Tensor) -> list[Tensor]:
        still = problem.initial_control(0.0, states).unsqueeze(1).repeat(1, problem.n_steps, 1)
        if isinstance(problem, Quadrotor):
            leans = ((0.9, 0.6), (0.9, 0.0), (0.0, 0.9))
            return [_leaning(problem, states, still, *lean) for lean in leans]
        return [still]

    def controls(self, problem: Problem, states: Tensor, decisions: Tensor) -> Tensor:
        return decisions

    def decisions(self, problem: Problem, states: Tensor, controls: Tensor) -> Tensor:
        return controls


class BoundedSteering(Parametrisation[Bicycle]):
    """Steering = max_steering * tanh(decision / max_steering): smooth, and slope 1 at zero."""

    def first_guesses(self, problem: Bicycle, states: Tensor) -> list[Tensor]:
        still = problem.initial_control(0.0, states).unsqueeze(1).repeat(1, problem.n_steps, 1)
        # Turn to the target in the first fifth of the time, and speed up to reach it in time.
        way = states.new_tensor(problem.target_position) - states[:, :2]
        distance, bearing = way.norm(dim=1), torch.atan2(way[:, 1], way[:, 0])
        cruise = distance / problem.t_final
        first = max(1, problem.n_steps // 5)
        turn = (bearing - states[:, 2]) / (first * problem.time_step)
        speeding = 2 * (cruise - states[:, 3]) / problem.t_final
        aimed = still.clone()
        aimed[:, :first, 0] = torch.atan(turn * problem.wheelbase / cruise)[:, None]
        aimed[..., 1] = speeding[:, None]
        return [aimed, still]

    def controls(self, problem: Bicycle, states: Tensor, decisions: Tensor) -> Tensor:
        bound = problem.max_steering
        steering = bound * (decisions[..., ::2] / bound).tanh()
        return torch.stack((steering, decisions[..., 1::2]), -1).flatten(2)

    def decisions(self, problem: Bicycle, states: Tensor, controls: Tensor) -> Tensor:
        bound = problem.max_steering
        # tanh reaches its bound at infinity only
        inside = (controls[..., ::2] / bound).clamp(-0.999, 0.999)
        return torch.stack((bound * inside.atanh(), controls[..., 1::2]), -1).flatten(2)


class LogExcess(Parametrisation[Consumption]):
    """u = habit + exp(decision), the excess held within its bounds."""

    def first_guesses(self, problem: Consumption, states: Tensor) -> list[Tensor]:
        # Two thirds of the even spending plan, so that wealth stays positive with the habits.
        level = torch.full_like(states[:, 1:], 2.0 / 3.0 * problem.nominal_excess).log()
        return [level.unsqueeze(1).repeat(1, problem.n_steps, 1)]

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


def parametrisation_of(problem: Problem) -> Parametrisation[Any]:
    """The parametrisation that keeps the problem's controls admissible."""
    if isinstance(problem, Consumption):
        return LogExcess()
    return BoundedSteering() if isinstance(problem, Bicycle) else Unbounded()


def _leaning(
    problem: Quadrotor, states: Tensor, still: Tensor, lean_x: float, lean_y: float
) -> Tensor:
    """One long lean towards the target, [rad], with the thrust reversed half way.

    The cheaper of two kinds of optimum, see `starts`; the lean is A (1 - cos(2 pi t / T)) / 2.
    """
    guess = still.clone()
    turn = torch.linspace(0, 2 * math.pi, problem.n_steps, dtype=states.dtype).cos()
    size = 2 * (math.pi / problem.t_final) ** 2
    towards = (states.new_tensor(problem.target_position) - states[:, :3]).sign()
    guess[..., 0] = problem.mass * problem.g * turn
    guess[..., 2] = lean_x * size * turn * towards[:, :1]
    guess[..., 3] = -lean_y * size * turn * towards[:, 1:2]
    return guess
