"""Optimal trajectories with their costates, and how both change beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore._derivatives import gradient, hessian_product
from jfbcore.problems import Problem

#: smallest curvature in the control that is believed, relative to the largest
_FLOOR = 1e-8
#: numbers in the Hessians that are held at a time
_NUMBERS = 2**25
#: least share of H's own curvature in the control that a minimum's has: others push it down
_LEAST = 0.1


@dataclass(frozen=True, kw_only=True)
class Extremals:
    """Trajectories that satisfy the first-order conditions on a problem's own Euler grid.

    In the problem's units and in float64 on the CPU. `times`: (n_steps,), the beginning of each
    time step. `states` (S, n_steps, n) and `controls` (S, n_steps, m) there. `costates`
    (S, n_steps, n): the derivative of the cost that is still to come in the *next* state, which is
    the multiplier of the Euler step; with it `controls` maximise the Hamiltonian at `states`.
    `slopes` (S, n_steps, n, n): the derivative of that costate in the state, along the optimal
    feedback: a state beside the trajectory by d has the costate `costates + slopes d`, to first
    order (neighbouring extremals; Bryson and Ho, Applied Optimal Control, 1975, chapter 6), and by
    `feedback` (S, n_steps, m, n) the control `controls + feedback d`.
    """

    times: Tensor
    states: Tensor
    controls: Tensor
    costates: Tensor
    slopes: Tensor
    feedback: Tensor


@torch.no_grad()
def extremals(problem: Problem, initial_states: Tensor, controls: Tensor) -> Extremals:
    """What the optimal open-loop `controls` (S, n_steps, m) from `initial_states` (S, n) imply.

    No solver's multipliers are needed: the costate is the derivative of the cost by one sweep
    backwards, its slope comes from a Riccati recursion on the second derivatives. Where a
    trajectory is no minimum (agents that each answer the others need not be on one together), that
    recursion grows beyond all bounds; its second derivatives are then taken without what bends
    down, which keeps the feedback one that leads back. Memory grows with S n_steps (n + m)^2.
    `problem` must compute in float64 on the CPU. Raises ValueError where a shape does not fit, or
    where a second derivative is not finite.
    """
    _validate.instance("problem", problem, Problem, "Quadrotor(n_agents=1, dtype=torch.float64)")
    shape = (len(initial_states), problem.n_steps, problem.control_dim)
    if controls.shape != shape:
        raise ValueError(f"`controls` must be {shape}, got {tuple(controls.shape)}")
    states = _states(problem, initial_states, controls)
    costates = _costates(problem, states, controls)
    slopes, feedback = _slopes(problem, states, controls, costates)
    for name, found in (("costates", costates), ("slopes", slopes)):
        if not found.isfinite().all():
            raise ValueError(f"`controls` lead to {name} that are not finite")
    times = problem.time_step * torch.arange(problem.n_steps, dtype=states.dtype)
    return Extremals(
        times=times,
        states=states[:, :-1],
        controls=controls,
        costates=costates,
        slopes=slopes,
        feedback=feedback,
    )


@torch.no_grad()
def flown_beside(
    problem: Problem, known: Extremals, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Flights from `initial` (S, n), a whole number of times as many as the `known` ones, by the
    feedback of these: states (S, n_steps, n), controls (S, n_steps, m) and costs (S,)."""
    h, count = problem.time_step, len(initial) // len(known.states)
    z, cost = initial, initial.new_zeros(len(initial))
    states, controls = [], []
    parts = known.states, known.controls, known.feedback
    for i, t in enumerate(known.times.tolist()):
        beside, control, feedback = (
            part[:, i].repeat(count, *(1,) * (part.dim() - 2)) for part in parts
        )
        u = control + (feedback @ (z - beside).unsqueeze(2)).squeeze(2)
        # The projection does not depend on the costate.
        u = problem.hamiltonian(t, z, torch.zeros_like(z)).project(u)
        states.append(z)
        controls.append(u)
        cost = cost + h * problem.running_cost(t, z, u)
        z = z + h * problem.dynamics(t, z, u)
    cost = cost + problem.terminal_cost(z)
    return torch.stack(states, 1), torch.stack(controls, 1), cost


def _states(problem: Problem, initial: Tensor, controls: Tensor) -> Tensor:
    """(S, n_steps + 1, n)."""
    h, states = problem.time_step, [initial]
    for i in range(problem.n_steps):
        z = states[-1]
        states.append(z + h * problem.dynamics(i * h, z, controls[:, i]))
    return torch.stack(states, 1)


def _costates(problem: Problem, states: Tensor, controls: Tensor) -> Tensor:
    """(S, n_steps, n): entry i belongs to the state after time step i."""
    h, costates = problem.time_step, [gradient(problem.terminal_cost, states[:, -1])]
    for i in reversed(range(1, problem.n_steps)):
        p, u = costates[-1], controls[:, i]

        def to_come(z: Tensor, t: float = i * h, p: Tensor = p, u: Tensor = u) -> Tensor:
            after = z + h * problem.dynamics(t, z, u)
            return h * problem.running_cost(t, z, u) + (p * after).sum(1)

        costates.append(gradient(to_come, states[:, i]))
    return torch.stack(costates[::-1], 1)


def _slopes(
    problem: Problem, states: Tensor, controls: Tensor, costates: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the costates, (S, n_steps, n, n), and of the controls, (S, n_steps, m, n), by the Riccati
    recursion of the cost's second-order expansion."""
    jacobian, hessian, force = _second_order(problem, states, controls, costates)
    free = ~_held(problem, states, controls, costates, force)
    parts = _hessian(problem.terminal_cost, states[:, -1]), jacobian, hessian, free
    slopes, feedback, minimal = _riccati(*parts)
    if (rest := ~minimal).any():
        terminal, jacobian, hessian, free = (part[rest] for part in parts)
        convex = _riccati(terminal, jacobian, _convex(hessian), free)
        slopes[rest], feedback[rest], _ = convex
    return slopes, feedback


def _held(
    problem: Problem, states: Tensor, controls: Tensor, costates: Tensor, force: Tensor
) -> Tensor:
    """Mask (S, n_steps, m), True where a control would leave its bounds if it followed its `force`,
    the slope of the cost: it stays there when the state moves a little."""
    h, held = problem.time_step, []
    for i in range(problem.n_steps):
        hamiltonian = problem.hamiltonian(i * h, states[:, i], costates[:, i])
        ascent = -force[:, i] / h
        moved = hamiltonian.project(controls[:, i] + ascent) - controls[:, i]
        held.append(moved.abs() < 0.5 * ascent.abs())
    return torch.stack(held, 1)


def _riccati(
    terminal: Tensor, jacobian: Tensor, hessian: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes, feedback, and whether each trajectory is a minimum, (S,): whether the cost to come
    curves upwards in the controls that are `free`, at every time step."""
    n, second = terminal.shape[-1], terminal
    minimal = torch.ones(len(terminal), dtype=torch.bool)
    slopes, feedbacks = [], []
    for i in reversed(range(jacobian.shape[1])):
        at, mask = jacobian[:, i], free[:, i].to(second).unsqueeze(2)
        total = _symmetric(hessian[:, i] + at.mT @ second @ at)
        cross, curvature = total[:, n:, :n], total[:, n:, n:]
        alone, curvature = (_among(mask, part) for part in (hessian[:, i, n:, n:], curvature))
        # What has gone wrong before may not even be finite.
        values, vectors = torch.linalg.eigh(curvature.where(minimal[:, None, None], alone))
        minimal &= values[:, 0] > _LEAST * torch.linalg.eigvalsh(alone)[:, 0].clamp_min(0.0)
        values = values.maximum(_FLOOR * values.abs().amax(1, True))
        inverse = (vectors / values.unsqueeze(1)) @ vectors.mT
        feedback = -mask * (inverse @ (mask * cross))
        feedbacks.append(feedback)
        slopes.append(second @ (at[:, :, :n] + at[:, :, n:] @ feedback))
        second = _symmetric(total[:, :n, :n] + cross.mT @ feedback)
    return torch.stack(slopes[::-1], 1), torch.stack(feedbacks[::-1], 1), minimal


def _second_order(
    problem: Problem, states: Tensor, controls: Tensor, costates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every Euler step in y = (z, u): its Jacobian (S, n_steps, n, n + m), the Hessian of cost
    plus <p, next state> (S, n_steps, n + m, n + m), and that sum's slope in u (S, n_steps, m)."""
    h, n, n_steps = problem.time_step, problem.state_dim, problem.n_steps
    size = n + problem.control_dim
    parts = []
    # All time steps at once, as many trajectories at a time as memory should hold.
    for chosen in torch.arange(len(states)).split(max(1, _NUMBERS // (n_steps * size**2))):
        t = (h * torch.arange(n_steps, dtype=states.dtype)).repeat(len(chosen))
        y = torch.cat((states[chosen, :-1], controls[chosen]), 2).flatten(0, 1)
        p = costates[chosen].flatten(0, 1)

        def after(y: Tensor, t: Tensor = t) -> Tensor:
            return y[:, :n] + h * problem.dynamics(t, y[:, :n], y[:, n:])

        def to_come(y: Tensor, t: Tensor = t, p: Tensor = p) -> Tensor:
            return h * problem.running_cost(t, y[:, :n], y[:, n:]) + (p * after(y, t)).sum(1)

        def component(y: Tensor, k: int, after: Callable[[Tensor], Tensor] = after) -> Tensor:
            return after(y)[:, k]

        rows = [gradient(functools.partial(component, k=k), y) for k in range(n)]
        jacobian = torch.stack(rows, 1)
        found = jacobian, _hessian(to_come, y), gradient(to_come, y)[:, n:]
        parts.append([part.unflatten(0, (len(chosen), n_steps)) for part in found])
    jacobians, hessians, forces = (torch.cat(each) for each in zip(*parts, strict=True))
    return jacobians, hessians, forces


def _hessian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(rows, d, d) of a function (rows, d) -> (rows,) whose rows do not mix."""
    units = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.stack([hessian_product(function, x, unit.expand_as(x)) for unit in units], 1)


def _among(mask: Tensor, matrix: Tensor) -> Tensor:
    """A symmetric `matrix` (S, m, m) with the rows and columns that `mask` (S, m, 1) leaves out
    replaced by those of the identity."""
    return matrix * mask * mask.mT + torch.diag_embed(1.0 - mask.squeeze(2))


def _convex(matrix: Tensor) -> Tensor:
    """Symmetric matrices without their negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    convex: Tensor = (vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT
    return convex


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)
