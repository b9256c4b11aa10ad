"""Batched solvers for A x = b, given A as a product, for implicit differentiation.

A is symmetric and, at a maximiser where H is concave, positive definite. Every solver works on
(batch, m) right-hand sides, one independent system per sample.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.solvers.base import Status, worst_status
from jfbcore.solvers.iterate import Iterative, State, iterate

Operator = Callable[[Tensor], Tensor]


class LinearSolver(abc.ABC):
    """Solves a batch of systems; what is not solved to tolerance comes back as it is."""

    @abc.abstractmethod
    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """Solve A x = b, all (batch, m); `preconditioner` applies an approximate inverse of A."""

    def repeat(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """As `solve`, by a fixed number of steps without a test: nothing waits for the device.

        Raises ValueError where `supports_repeat` has a reason.
        """
        raise ValueError(self.supports_repeat())

    def supports_repeat(self) -> str | None:
        """None, or the reason why there is no fixed number of steps to take."""
        return f"{type(self).__name__} decides on the host when to stop; use ConjugateGradient"


@dataclass(frozen=True, kw_only=True)
class DenseLU(LinearSolver):
    """Assembles A, (batch, m, m), and factors it: O(m^2) memory, O(m^3) time, exact.

    Prefer it for small m and as a check of the others. A singular A gives non-finite gradients.
    """

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """x (batch, m) of A x = b, by the LU factors of the assembled matrix."""
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        columns = torch.func.vmap(lambda column: operator(column.expand_as(b)))(identity)
        solution, _ = torch.linalg.solve_ex(columns.permute(1, 2, 0), b.unsqueeze(-1))
        x: Tensor = solution.squeeze(-1)
        return x


class System(NamedTuple):
    """A x = b for a batch: A and an approximate inverse of it as products, b (batch, m), |b|."""

    operator: Operator
    preconditioner: Operator
    b: Tensor
    size: Tensor

    @classmethod
    def of(cls, operator: Operator, preconditioner: Operator, b: Tensor) -> System:
        """The system A x = b with the size of `b` (batch, m), from which residuals are relative."""
        # The clamp makes the relative residual of 0 = A 0 zero and not undefined.
        size = torch.linalg.vector_norm(b, dim=-1, keepdim=True)
        return cls(operator, preconditioner, b, size.clamp_min(torch.finfo(b.dtype).tiny))

    def relative(self, r: Tensor) -> Tensor:
        """|r| / |b| of each sample, (batch, 1)."""
        length: Tensor = torch.linalg.vector_norm(r, dim=-1, keepdim=True)
        return length / self.size


class IterativeLinearSolver(LinearSolver, Iterative):
    """A linear solver as the loop in `jfbcore.solvers.iterate` runs it.

    Residuals are relative, (batch, 1), and zero where no step helps.
    """

    tolerance: float

    @abc.abstractmethod
    def init(self, system: System) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def limit(self, system: System) -> int:
        """Steps to take at most."""

    def evaluate(self, system: System, state: State) -> Tensor:
        """The relative residual, (batch, 1)."""
        return system.relative(state.residual)

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """x (batch, m) of A x = b, to the tolerance or the limit."""
        system = System.of(operator, preconditioner, b)
        return iterate(self, system, self.init(system), self.limit(system)).point


class SeriesState(NamedTuple):
    """Where a series stands.

    `solution` (batch, m): the sum so far, `residual` (batch, m): b - A x of it. `best` (batch, m):
    the sum of the least relative residual before it, `best_residual` (batch, 1); NaN before any.
    """

    solution: Tensor
    residual: Tensor
    best: Tensor
    best_residual: Tensor


@dataclass(frozen=True, kw_only=True)
class Neumann(IterativeLinearSolver):
    """Preconditioned Richardson iteration: with the map's scaling, the Neumann series of
    (I - dT/du)^-1 with at most `terms` terms. Converges where T contracts; elsewhere the partial
    sum of the least residual is returned, of each sample.
    """

    terms: int = 100
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _validate.positive_int("terms", self.terms)
        _validate.positive("tolerance", self.tolerance)

    def limit(self, system: System) -> int:
        """Terms to add to the first."""
        return self.terms - 1

    def init(self, system: System) -> SeriesState:
        """The state before the first step."""
        x = system.preconditioner(system.b)
        none = torch.full_like(x[:, :1], torch.nan)
        return SeriesState(x, system.b - system.operator(x), x, none)

    def step(self, system: System, state: SeriesState, evaluated: Tensor) -> SeriesState:
        """The state after one step."""
        x, r, best, best_residual = state
        best_residual = torch.fmin(best_residual, evaluated)
        best = torch.where(best_residual == evaluated, x, best)
        x = x + system.preconditioner(r)
        return SeriesState(x, system.b - system.operator(x), best, best_residual)

    def terminate(self, system: System, state: SeriesState, evaluated: Tensor) -> Tensor:
        """The least relative residual of the sums so far, (batch, 1)."""
        return torch.fmin(state.best_residual, evaluated)

    def answer(self, state: SeriesState, residual: Tensor) -> Tensor:
        """The partial sum (batch, m) of the least residual."""
        x = torch.where(residual == state.best_residual, state.best, state.solution)
        return torch.add(x, residual, alpha=0.0)


@dataclass(frozen=True)
class Watched(LinearSolver):
    """`solver`, which leaves the relative residuals |b - A x| / |b| of its solves in `residuals`.

    One (batch,) per solve; 0 where b is. For diagnostics: it costs one product more.
    """

    solver: LinearSolver
    residuals: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def status(self) -> Status:
        """How the worst of the systems ended; one that the solver did not solve is no secret here.

        Residuals of up to ten times the solver's tolerance count as converged: a solver may see
        another residual than |b - A x|, which is the preconditioned one or drifts by rounding.
        """
        tolerance = getattr(self.solver, "tolerance", None)
        return worst_status(
            torch.cat(self.residuals), None if tolerance is None else 10.0 * tolerance
        )

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """What `solver` returns, its relative residual noted in `residuals`."""
        x = self.solver.solve(operator, preconditioner, b)
        left, size = (torch.linalg.vector_norm(v, dim=-1) for v in (b - operator(x), b))
        self.residuals.append(torch.where(size > 0, left / size, left))
        return x
