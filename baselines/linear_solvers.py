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
from torch._higher_order_ops.while_loop import while_loop

from jfbcore import _validate

Operator = Callable[[Tensor], Tensor]


class LinearSolver(abc.ABC):
    """Solves a batch of systems; what is not solved to tolerance comes back as it is."""

    @abc.abstractmethod
    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """Solve A x = b, all (batch, m); `preconditioner` applies an approximate inverse of A."""

    def supports_compilation(self) -> str | None:
        """None, or the reason why torch.compile cannot make one graph of `solve`."""
        return f"{type(self).__name__} decides on the host when to stop; run it eager"

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

    def supports_compilation(self) -> str | None:
        return "DenseLU has no binding in generated C++ code; compile with ConjugateGradient"

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        columns = torch.func.vmap(lambda column: operator(column.expand_as(b)))(identity)
        solution, _ = torch.linalg.solve_ex(columns.permute(1, 2, 0), b.unsqueeze(-1))
        return solution.squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(LinearSolver):
    """Preconditioned conjugate gradients; the default. Needs A positive definite.

    Stops when every sample's residual is below `tolerance` times its right-hand side. A sample
    that meets non-positive curvature takes no step there and starts again from the preconditioned
    residual.
    """

    tolerance: float = 1e-6
    max_iterations: int = 100
    #: steps of `repeat`; the Hessians of this suite, diagonal plus at most rank one, need two
    untested_steps: int = 6

    def __post_init__(self) -> None:
        _validate.positive("tolerance", self.tolerance)
        _validate.positive_int("max_iterations", self.max_iterations)
        _validate.positive_int("untested_steps", self.untested_steps)

    def supports_compilation(self) -> str | None:
        return None

    def supports_repeat(self) -> str | None:
        return None

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        state, active, step = self._start(operator, preconditioner, b)
        if torch.compiler.is_compiling():
            # The same loop as an operator of the graph, which may not test on the host.
            count = torch.zeros((), dtype=torch.int64, device=b.device)
            start = (count, *(tensor.clone() for tensor in state))
            _, x, r, *_ = while_loop(
                lambda i, x, r, p, rz: (i < self.max_iterations) & active(r).any(),
                lambda i, x, r, p, rz: (i + 1, *step(x, r, p, rz)),
                start,
            )
            return torch.add(x, r, alpha=0.0)
        for _ in range(self.max_iterations):
            if not bool(active(state.residual).any()):
                break
            state = step(*state)
        # Adds zero to a finite residual and turns a NaN residual into NaN.
        return torch.add(state.solution, state.residual, alpha=0.0)

    def repeat(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        state, _, step = self._start(operator, preconditioner, b)
        for _ in range(min(self.untested_steps, self.max_iterations)):
            state = step(*state)
        return torch.add(state.solution, state.residual, alpha=0.0)

    def _start(
        self, operator: Operator, preconditioner: Operator, b: Tensor
    ) -> tuple[_Search, Callable[[Tensor], Tensor], Callable[..., _Search]]:
        """Where the search starts, which samples are not solved yet, and one step of it."""
        z = preconditioner(b)
        limit = self.tolerance * torch.linalg.vector_norm(b, dim=-1, keepdim=True)

        def active(r: Tensor) -> Tensor:
            return torch.linalg.vector_norm(r, dim=-1, keepdim=True) > limit

        def step(x: Tensor, r: Tensor, p: Tensor, rz: Tensor) -> _Search:
            ap = operator(p)
            curvature = _dot(p, ap)
            usable = active(r) & (curvature > 0)
            length = torch.where(usable, rz / curvature, 0.0)
            x, r = x + length * p, r - length * ap
            z = preconditioner(r)
            rz_new = _dot(r, z)
            p = z + torch.where(usable, rz_new / rz, 0.0) * p
            return _Search(x, r, p, rz_new)

        return _Search(torch.zeros_like(b), b, z, _dot(b, z)), active, step


class _Search(NamedTuple):
    """Where conjugate gradients stand: (batch, m) each, and <r, z> (batch, 1)."""

    solution: Tensor
    residual: Tensor
    direction: Tensor
    product: Tensor


@dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Left-preconditioned GMRES without restart; for A that is symmetric but indefinite.

    Stores up to `max_iterations` vectors of (batch, m).
    """

    tolerance: float = 1e-6
    max_iterations: int = 30

    def __post_init__(self) -> None:
        _validate.positive("tolerance", self.tolerance)
        _validate.positive_int("max_iterations", self.max_iterations)

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        r = preconditioner(b)
        beta = torch.linalg.vector_norm(r, dim=-1)
        tiny, rounding = torch.finfo(b.dtype).tiny, torch.finfo(b.dtype).eps
        basis = [r / beta.clamp_min(tiny).unsqueeze(-1)]
        steps = min(self.max_iterations, b.shape[-1])
        hessenberg = b.new_zeros(b.shape[0], steps + 1, steps)
        target = b.new_zeros(b.shape[0], steps + 1, 1)
        target[:, 0, 0] = beta
        weights = target[:, :0]
        for j in range(steps):
            w = preconditioner(operator(basis[j]))
            vectors = torch.stack(basis, 1)
            # Classical Gram-Schmidt twice: as stable as the modified form, and two products.
            for _ in range(2):
                overlap = (vectors @ w.unsqueeze(-1)).squeeze(-1)
                hessenberg[:, : j + 1, j] += overlap
                w = w - (overlap.unsqueeze(1) @ vectors).squeeze(1)
            norm = torch.linalg.vector_norm(w, dim=-1)
            # An invariant subspace: the solution is inside what has been found.
            broken = norm <= rounding * hessenberg[:, : j + 1, j].norm(dim=1)
            hessenberg[:, j + 1, j] = torch.where(broken, 0.0, norm)
            basis.append(torch.where(broken, 0.0, 1.0 / norm).unsqueeze(-1) * w)
            block = hessenberg[:, : j + 2, : j + 1]
            # Of a sample with infinite or undefined numbers no pseudoinverse exists; its answer
            # is undefined, and the other samples' are not touched.
            usable = block.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
            inverse = torch.linalg.pinv(torch.where(usable, block, 0.0))
            weights = torch.where(usable, inverse, torch.nan) @ target[:, : j + 2]
            misfit = torch.linalg.vector_norm(block @ weights - target[:, : j + 2], dim=(1, 2))
            if not bool((misfit > self.tolerance * beta).any()):
                break
        return (weights.transpose(1, 2) @ torch.stack(basis[: weights.shape[1]], 1)).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    """Preconditioned Richardson iteration: with the map's scaling, the Neumann series of
    (I - dT/du)^-1 with at most `terms` terms. Converges where T contracts.
    """

    terms: int = 100
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _validate.positive_int("terms", self.terms)
        _validate.positive("tolerance", self.tolerance)

    def supports_compilation(self) -> str | None:
        return None

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        x = preconditioner(b)
        limit = self.tolerance * torch.linalg.vector_norm(b, dim=-1)

        def active(r: Tensor) -> Tensor:
            return (torch.linalg.vector_norm(r, dim=-1) > limit).any()

        if torch.compiler.is_compiling():
            # The same loop as an operator of the graph, which may not test on the host.
            def add_term(count: Tensor, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                x = x + preconditioner(r)
                return count + 1, x, b - operator(x)

            count = torch.ones((), dtype=torch.int64, device=b.device)
            _, x, r = while_loop(
                lambda count, x, r: (count < self.terms) & active(r),
                add_term,
                (count, x.clone(), b - operator(x)),
            )
            return torch.add(x, r, alpha=0.0)
        for _ in range(self.terms - 1):
            r = b - operator(x)
            if not bool(active(r)):
                # A residual that is no number is no reason to go on, and the answer too.
                return torch.add(x, r, alpha=0.0)
            x = x + preconditioner(r)
        return x


@dataclass(frozen=True)
class Watched(LinearSolver):
    """`solver`, which leaves the relative residuals |b - A x| / |b| of its solves in `residuals`.

    One (batch,) per solve; 0 where b is. For diagnostics: it costs one product more.
    """

    solver: LinearSolver
    residuals: list[Tensor] = field(default_factory=list, compare=False)

    def solve(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        x = self.solver.solve(operator, preconditioner, b)
        left, size = (torch.linalg.vector_norm(v, dim=-1) for v in (b - operator(x), b))
        self.residuals.append(torch.where(size > 0, left / size, left))
        return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b).unsqueeze(-1)
