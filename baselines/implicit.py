"""Exact implicit differentiation of the maximiser."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from baselines.linear_solvers import ConjugateGradient, LinearSolver
from jfbcore.gradients import GradientEstimator
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
    """

    linear_solver: LinearSolver = field(default_factory=ConjugateGradient)

    def __post_init__(self) -> None:
        if not isinstance(self.linear_solver, LinearSolver):
            raise TypeError(
                "`linear_solver` must be a LinearSolver object such as ConjugateGradient(), "
                f"got {self.linear_solver!r}"
            )

    def supports_compilation(self, solver: Solver) -> str | None:
        return solver.supports_compilation() or self.linear_solver.supports_compilation()

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        found = solver.solve(fixed_point_map, initial)
        if not torch.is_grad_enabled():
            return found
        hamiltonian = fixed_point_map.hamiltonian
        # The control is a constant here; its derivative is put back by the linear solve.
        u = found.control.detach()
        gradient = hamiltonian.grad(u)
        with torch.no_grad():
            step = u + fixed_point_map.scale(u, gradient)
        # T(u), tracked only in how the bounds that hold it move with the state.
        image = hamiltonian.project(step)
        control = _ImplicitControl.apply(
            u, gradient, image, hamiltonian.interior(step), fixed_point_map, self.linear_solver
        )
        return Solution(control, found.residual, found.iterations, found.tolerance)


class _ImplicitControl(torch.autograd.Function):
    """`image`, whose cotangent v becomes x = (-M H M)^-1 M v on grad H at `u`."""

    @staticmethod
    def forward(
        ctx,
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
    def backward(ctx, v: Tensor):
        u, interior = ctx.saved_tensors
        bound_map = ctx.fixed_point_map
        hamiltonian = bound_map.hamiltonian
        if interior is None:
            x = ctx.linear_solver.solve(
                lambda w: -hamiltonian.hvp(u, w), lambda r: bound_map.scale(u, r), v
            )
            return None, x, None, None, None, None

        # On the bounds the system is the identity with a zero right-hand side.
        def operator(w: Tensor) -> Tensor:
            inside = torch.where(interior, w, 0.0)
            return torch.where(interior, -hamiltonian.hvp(u, inside), w)

        def preconditioner(r: Tensor) -> Tensor:
            return torch.where(interior, bound_map.scale(u, torch.where(interior, r, 0.0)), r)

        x = ctx.linear_solver.solve(operator, preconditioner, torch.where(interior, v, 0.0))
        on_bounds = torch.where(interior, 0.0, v + hamiltonian.hvp(u, x))
        return None, x, on_bounds, None, None, None
