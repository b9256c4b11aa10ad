"""Krylov methods for the linear systems of implicit differentiation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from baselines.linear_solvers import IterativeLinearSolver, Operator, System
from jfbcore import _validate
from jfbcore.solvers.iterate import take


class SearchState(NamedTuple):
    """Where conjugate gradients stand.

    `solution`, `residual`, `direction`: (batch, m). `product`: <r, z>, and `usable`: whether the
    last step was taken, (batch, 1): no sample takes one after the first that it does not take.
    """

    solution: Tensor
    residual: Tensor
    direction: Tensor
    product: Tensor
    usable: Tensor


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(IterativeLinearSolver):
    """Preconditioned conjugate gradients; the default. Needs A positive definite.

    Stops when every sample's residual is below `tolerance` times its right-hand side. A sample
    that meets non-positive curvature ends there, with the solution it has, and nobody waits for
    it; for such matrices prefer GMRES.
    """

    tolerance: float = 1e-6
    max_iterations: int = 100
    #: steps of `repeat`; the Hessians of this suite, diagonal plus at most rank one, need two
    untested_steps: int = 6

    def __post_init__(self) -> None:
        _validate.positive("tolerance", self.tolerance)
        _validate.positive_int("max_iterations", self.max_iterations)
        _validate.positive_int("untested_steps", self.untested_steps)

    def supports_repeat(self) -> str | None:
        """None: any number of steps can be taken untested."""
        return None

    def limit(self, system: System) -> int:
        """Steps to take at most."""
        return self.max_iterations

    def init(self, system: System) -> SearchState:
        """The state before the first step."""
        b, z = system.b, system.preconditioner(system.b)
        product = _dot(b, z)
        usable = torch.ones_like(product, dtype=torch.bool)
        return SearchState(torch.zeros_like(b), b, z, product, usable)

    def step(self, system: System, state: SearchState, evaluated: Tensor) -> SearchState:
        """The state after one step."""
        x, r, p, rz, usable = state
        ap = system.operator(p)
        curvature = _dot(p, ap)
        usable = usable & (evaluated > self.tolerance) & (curvature > 0)
        length = torch.where(usable, rz / curvature, 0.0)
        x, r = torch.addcmul(x, length, p), torch.addcmul(r, length, ap, value=-1.0)
        z = system.preconditioner(r)
        rz_next = _dot(r, z)
        p = torch.addcmul(z, torch.where(usable, rz_next / rz, 0.0), p)
        return SearchState(x, r, p, rz_next, usable)

    def terminate(self, system: System, state: SearchState, evaluated: Tensor) -> Tensor:
        """The relative residual (batch, 1); zero where no step helps any more."""
        return evaluated * state.usable

    def answer(self, state: SearchState, residual: Tensor) -> Tensor:
        """The control or solution (batch, m) to return."""
        # A residual that is not finite makes the solution NaN.
        return torch.add(state.solution, state.residual, alpha=0.0)

    def repeat(self, operator: Operator, preconditioner: Operator, b: Tensor) -> Tensor:
        """The solution (batch, m) after a fixed number of steps, none of them tested."""
        system = System.of(operator, preconditioner, b)
        steps = min(self.untested_steps, self.max_iterations)
        state = take(self, system, self.init(system), steps)
        return self.answer(state, state.residual)


class KrylovState(NamedTuple):
    """Where GMRES stands after j steps.

    `basis`: orthonormal vectors (batch, j + 1, m). `hessenberg`: (batch, steps + 1, steps), of
    which j columns are filled. `target`: |r0| e1, (batch, steps + 1, 1). `weights`: (batch, j, 1),
    the solution's in the basis. `residual`: relative to |r0|, (batch, 1).
    """

    basis: Tensor
    hessenberg: Tensor
    target: Tensor
    weights: Tensor
    residual: Tensor


@dataclass(frozen=True, kw_only=True)
class GMRES(IterativeLinearSolver):
    """Left-preconditioned GMRES without restart; for A that is symmetric but indefinite.

    Stores up to `max_iterations` vectors of (batch, m). Its residual is the preconditioned one.
    """

    tolerance: float = 1e-6
    max_iterations: int = 30

    def __post_init__(self) -> None:
        _validate.positive("tolerance", self.tolerance)
        _validate.positive_int("max_iterations", self.max_iterations)

    def limit(self, system: System) -> int:
        """Steps to take at most: no more than the dimension."""
        return min(self.max_iterations, system.b.shape[-1])

    def init(self, system: System) -> KrylovState:
        """The state before the first step."""
        b, steps = system.b, self.limit(system)
        r = system.preconditioner(b)
        beta = torch.linalg.vector_norm(r, dim=-1)
        size = beta.clamp_min(torch.finfo(b.dtype).tiny)
        hessenberg = b.new_zeros(b.shape[0], steps + 1, steps)
        target = b.new_zeros(b.shape[0], steps + 1, 1)
        target[:, 0, 0] = beta
        basis = (r / size.unsqueeze(-1)).unsqueeze(1)
        return KrylovState(basis, hessenberg, target, target[:, :0], (beta / size).unsqueeze(-1))

    def evaluate(self, system: System, state: KrylovState) -> Tensor:
        """The relative residual that the recurrence carries, (batch, 1)."""
        return state.residual

    def step(self, system: System, state: KrylovState, evaluated: Tensor) -> KrylovState:
        """The state after one step."""
        basis, hessenberg, target, *_ = state
        j, rounding = basis.shape[1] - 1, torch.finfo(basis.dtype).eps
        w = system.preconditioner(system.operator(basis[:, j]))
        # Classical Gram-Schmidt twice: as stable as the modified form, and two products.
        for _ in range(2):
            overlap = (basis @ w.unsqueeze(-1)).squeeze(-1)
            hessenberg[:, : j + 1, j] += overlap
            w = w - (overlap.unsqueeze(1) @ basis).squeeze(1)
        norm = torch.linalg.vector_norm(w, dim=-1)
        # Where the subspace is invariant the solution is in it already.
        broken = norm <= rounding * hessenberg[:, : j + 1, j].norm(dim=1)
        hessenberg[:, j + 1, j] = torch.where(broken, 0.0, norm)
        latest = torch.where(broken, 0.0, 1.0 / norm).unsqueeze(-1) * w
        block = hessenberg[:, : j + 2, : j + 1]
        # A sample with infinite or undefined numbers has no pseudoinverse; its answer is
        # undefined, and the other samples' are not touched.
        usable = block.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        inverse = torch.linalg.pinv(torch.where(usable, block, 0.0))
        weights = torch.where(usable, inverse, torch.nan) @ target[:, : j + 2]
        misfit = torch.linalg.vector_norm(block @ weights - target[:, : j + 2], dim=(1, 2))
        size = target[:, 0, 0].clamp_min(torch.finfo(basis.dtype).tiny)
        basis = torch.cat((basis, latest.unsqueeze(1)), 1)
        return KrylovState(basis, hessenberg, target, weights, (misfit / size).unsqueeze(-1))

    def terminate(self, system: System, state: KrylovState, evaluated: Tensor) -> Tensor:
        """The relative residual (batch, 1) of the least-squares problem."""
        return evaluated

    def answer(self, state: KrylovState, residual: Tensor) -> Tensor:
        """The solution (batch, m) of least residual in the Krylov space."""
        taken = state.weights.shape[1]
        solution = (state.weights.transpose(1, 2) @ state.basis[:, :taken]).squeeze(1)
        return torch.add(solution, residual, alpha=0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a, b).unsqueeze(-1)
    return product
