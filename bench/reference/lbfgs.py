"""L-BFGS on many independent objectives at once, one per row.

Rows share the evaluation of the objective and nothing else: each has its own curvature pairs,
step length and stopping test. `torch.optim.LBFGS` on the sum would couple the rows, and one row
at a time would pay the rollout's overhead for every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: rows (batch, d) -> values (batch,) and gradients (batch, d)
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

CONVERGED = "converged"
LINE_SEARCH_STOPPED = "line search found no lower cost"
ITERATION_LIMIT = "iteration limit"


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """Where each row stopped, and why."""

    points: Tensor  # (batch, d)
    values: Tensor  # (batch,)
    statuses: list[str]
    iterations: int


@dataclass(frozen=True, kw_only=True)
class BatchedLBFGS:
    """Limited-memory BFGS with a bisection line search for the weak Wolfe conditions.

    The line search is that of Lewis and Overton (Math. Program. 141, 2013), which also serves
    objectives with kinks and jumps: it needs no interpolation and one comparison per row. A row
    stops when its value has fallen by less than `tolerance`, relative, over `patience`
    iterations or would fall by less than that along the next step, or when two line searches in
    a row, the second along the gradient, fail.
    """

    max_iterations: int = 500
    memory: int = 30
    tolerance: float = 1e-7
    patience: int = 10
    max_trials: int = 25

    def minimise(
        self,
        objective: Objective,
        start: Tensor,
        on_iteration: Callable[[int, Tensor], None] | None = None,
    ) -> Minimum:
        """Minimise every row of `start`, (batch, d), whose values must be finite."""
        x = start.clone()
        value, gradient = objective(x)
        steps: list[Tensor] = []
        changes: list[Tensor] = []
        history = [value]
        failures = torch.zeros(len(x), dtype=torch.long)
        active = torch.isfinite(value)
        converged = torch.zeros_like(active)
        iteration = 0
        for iteration in range(1, self.max_iterations + 1):
            direction = -_two_loop(gradient, steps, changes)
            slope = (direction * gradient).sum(1)
            # A row whose last search failed, or whose pairs mislead it, starts over.
            restart = (failures > 0) | (slope >= 0) | ~torch.isfinite(slope)
            direction = torch.where(restart[:, None], -gradient, direction)
            slope = (direction * gradient).sum(1)
            # A step along it would gain about half the slope: nothing, at this precision.
            converged |= active & (slope.abs() <= 0.1 * self.tolerance * value.abs())
            active = active & ~converged
            if not active.any():
                break
            first = torch.ones_like(value) if steps else _first_length(gradient)
            length = torch.where(restart, _first_length(gradient), first)
            new_x, new_value, new_gradient, moved = self._search(
                objective, x, value, gradient, direction, length, active
            )
            failures = torch.where(moved, 0, failures + 1)
            step, change = new_x - x, new_gradient - gradient
            keep = moved & ((step * change).sum(1) > 1e-12 * step.norm(dim=1) * change.norm(dim=1))
            # A zero pair leaves the recursion of that row as it was.
            steps.append(step * keep[:, None])
            changes.append(change * keep[:, None])
            for pairs in (steps, changes):
                for j in range(len(pairs)):
                    pairs[j] = torch.where((failures > 0)[:, None], 0.0, pairs[j])
                del pairs[: -self.memory]
            x, value, gradient = new_x, new_value, new_gradient
            history.append(value)
            if len(history) > self.patience:
                gain = history[-1 - self.patience] - value
                converged |= active & (failures == 0) & (gain <= self.tolerance * value.abs())
            active = active & ~converged & (failures < 2)
            if on_iteration is not None:
                on_iteration(iteration, value)
            if not active.any():
                break
        statuses = [
            CONVERGED if done else ITERATION_LIMIT if going else LINE_SEARCH_STOPPED
            for done, going in zip(converged.tolist(), active.tolist(), strict=True)
        ]
        return Minimum(points=x, values=value, statuses=statuses, iterations=iteration)

    def _search(
        self,
        objective: Objective,
        x: Tensor,
        value: Tensor,
        gradient: Tensor,
        direction: Tensor,
        length: Tensor,
        active: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step per active row: new point, value, gradient, and whether the row moved."""
        slope = (direction * gradient).sum(1)
        low = torch.zeros_like(length)
        high = torch.full_like(length, torch.inf)
        best, best_value, best_gradient = x.clone(), value.clone(), gradient.clone()
        searching = active.clone()
        for _ in range(self.max_trials):
            # Rows that are done are evaluated where they stand, to keep the batch whole.
            trial = torch.where(searching[:, None], x + length[:, None] * direction, best)
            trial_value, trial_gradient = objective(trial)
            finite = torch.isfinite(trial_value) & torch.isfinite(trial_gradient).all(1)
            lower = finite & (trial_value <= value + 1e-4 * length * slope)
            steep = (trial_gradient * direction).sum(1) < 0.9 * slope
            better = searching & lower & (trial_value < best_value)
            best = torch.where(better[:, None], trial, best)
            best_value = torch.where(better, trial_value, best_value)
            best_gradient = torch.where(better[:, None], trial_gradient, best_gradient)
            low = torch.where(searching & lower, length, low)
            high = torch.where(searching & ~lower, length, high)
            searching = searching & (~lower | steep)
            if not searching.any():
                break
            length = torch.where(torch.isfinite(high), 0.5 * (low + high), 2.0 * length)
        return best, best_value, best_gradient, best_value < value


def _first_length(gradient: Tensor) -> Tensor:
    return gradient.norm(dim=1).clamp_min(1.0).reciprocal()


def _two_loop(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """The inverse-Hessian approximation times the gradient, row by row; zero pairs drop out."""
    q, weights = gradient, []
    products = [(s * y).sum(1) for s, y in zip(steps, changes, strict=True)]
    inverses = [torch.where(p > 0, 1.0 / p, 0.0) for p in products]
    for s, y, rho in zip(reversed(steps), reversed(changes), reversed(inverses), strict=True):
        weight = rho * (s * q).sum(1)
        weights.append(weight)
        q = q - weight[:, None] * y
    scale = torch.ones_like(gradient[:, 0])
    for product, y in zip(products, changes, strict=True):
        scale = torch.where(product > 0, product / (y * y).sum(1), scale)
    q = scale[:, None] * q
    for s, y, rho, weight in zip(steps, changes, inverses, reversed(weights), strict=True):
        q = q + (weight - rho * (y * q).sum(1))[:, None] * s
    return q
