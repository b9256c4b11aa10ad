"""Exact implicit differentiation of the maximiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from baselines.krylov import ConjugateGradient
from baselines.linear_solvers import LinearSolver
from jfbcore.jfb import GradientEstimator
from jfbcore.kernels.fused import pull_back
from jfbcore.maps import BoundMap
from jfbcore.solvers import Solution, Solver


@dataclass(frozen=True)
class Implicit(GradientEstimator):
    """The implicit-function gradient, exact at the residual the solver reached.

    The gradient does not depend on the map: with H the Hessian of the Hamiltonian in u and M the
    mask of controls inside their bounds, the fixed point's derivative solves
    -M H M dx = M d(grad H). One linear solve per time step, O(1) memory in the iterations.

    The control handed on is T(u*), as deep equilibrium models do (Bai et al., 2019) and as `JFB`
    does: the two roll out along one trajectory, and a difference between their gradients is the
    bias alone. Where the closed loop is sensitive, a control one application behind is enough to
    land elsewhere.

    `linear_solver` is an object: `ConjugateGradient()`, `GMRES()`, `DenseLU()`, `Neumann()`.
    `recompute` trades one more evaluation of every time step for memory, as in `JFB`.
    """

    linear_solver: LinearSolver = field(default_factory=ConjugateGradient)
    recompute: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.linear_solver, LinearSolver):
            raise TypeError(
                "`linear_solver` must be a LinearSolver object such as ConjugateGradient(), "
                f"got {self.linear_solver!r}"
            )

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The solver's control, whose derivative is one linear solve on the way back."""
        solution = solver.solve(fixed_point_map, initial)
        if not torch.is_grad_enabled():
            return solution
        # The control is a constant here; its derivative is put back by the linear solve.
        u = solution.control.detach()
        gradient, step, image = _parts(fixed_point_map, u)
        interior = fixed_point_map.hamiltonian.interior(step)
        control = _ImplicitControl.apply(
            u, gradient, image, interior, fixed_point_map, self.linear_solver
        )
        return replace(solution, control=control)

    def supports_pull_back(self, solver: Solver) -> str | None:
        """None, or the reason why the linear solver takes no fixed number of steps."""
        return self.linear_solver.supports_repeat()

    def reattach(self, fixed_point_map: BoundMap, solver: Solver, kept: Tensor) -> Tensor:
        """One application of the map to `kept` (batch, m)."""
        return fixed_point_map(kept)

    def pull_back(
        self,
        bind: Callable[[Tensor, Tensor], BoundMap],
        solver: Solver,
        z: Tensor,
        p: Tensor,
        kept: Tensor,
        control_bar: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(z_bar, p_bar), (batch, n) each, by the linear solver's fixed number of steps."""
        bound = bind(z, p)
        _, step, _ = _parts(bound, kept)
        interior = bound.hamiltonian.interior(step)
        x, on_bounds = _transposed(bound, self.linear_solver.repeat, kept, interior, control_bar)

        def formula(z: Tensor, p: Tensor) -> tuple[Tensor, ...]:
            gradient, _, image = _parts(bind(z, p), kept)
            return (gradient,) if on_bounds is None else (gradient, image)

        back = pull_back(formula, z, p)
        z_bar, p_bar = back((x,) if on_bounds is None else (x, on_bounds))
        return z_bar, p_bar


def _parts(fixed_point_map: BoundMap, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """grad H at the constant `u`, the point the map steps to, and T(u), (batch, m) each.

    T(u) is tracked only in how the bounds that hold it move with the state.
    """
    hamiltonian = fixed_point_map.hamiltonian
    gradient = hamiltonian.grad(u)
    with torch.no_grad():
        step = u + fixed_point_map.scale(u, gradient)
    return gradient, step, hamiltonian.project(step)


class _ImplicitControl(torch.autograd.Function):
    """`image`, whose cotangent v becomes x = (-M H M)^-1 M v on grad H at `u`."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        gradient: Tensor,
        image: Tensor,
        interior: Tensor | None,
        fixed_point_map: BoundMap,
        linear_solver: LinearSolver,
    ) -> Tensor:
        ctx.save_for_backward(u, interior)
        ctx.fixed_point_map, ctx.linear_solver = fixed_point_map, linear_solver
        return image.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        u, interior = ctx.saved_tensors
        x, on_bounds = _transposed(ctx.fixed_point_map, ctx.linear_solver.solve, u, interior, v)
        return None, x, on_bounds, None, None, None


def _transposed(
    fixed_point_map: BoundMap,
    solve: Callable[..., Tensor],
    u: Tensor,
    interior: Tensor | None,
    v: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """x = (-M H M)^-1 M v, and what is left of v for controls on their bounds; None without any."""
    hamiltonian = fixed_point_map.hamiltonian
    if interior is None:
        x = solve(lambda w: -hamiltonian.hvp(u, w), lambda r: fixed_point_map.scale(u, r), v)
        return x, None

    # On the bounds the system is the identity with a zero right-hand side.
    def operator(w: Tensor) -> Tensor:
        inside = torch.where(interior, w, 0.0)
        return torch.where(interior, -hamiltonian.hvp(u, inside), w)

    def preconditioner(r: Tensor) -> Tensor:
        return torch.where(interior, fixed_point_map.scale(u, torch.where(interior, r, 0.0)), r)

    x = solve(operator, preconditioner, torch.where(interior, v, 0.0))
    return x, torch.where(interior, 0.0, v + hamiltonian.hvp(u, x))
