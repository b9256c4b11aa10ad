"""Fixed-point maps T(u) = P(u + alpha D grad H(u)) whose fixed points maximise H.

The scaling alpha D is part of the benchmark: it decides how fast the inner iteration contracts
and, because JFB multiplies the derivative of grad H by it, how far a JFB gradient is from the
true one. D is always detached: no derivative of D reaches any estimator, which leaves the
derivative of the fixed point exact (grad H vanishes there) and that of a single step biased.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from jfbcore._validate import finite, optional, parameter, parameters, positive
from jfbcore.problems.base import Hamiltonian


@dataclass(frozen=True)
class FixedPointMap(abc.ABC):
    """The recipe for a map; `bind` makes it a function of the control for one Hamiltonian."""

    def __post_init__(self) -> None:
        parameters(self)

    @abc.abstractmethod
    def direction(self, hamiltonian: Hamiltonian, u: Tensor, r: Tensor) -> Tensor:
        """alpha D r at `u`, (batch, m), linear in `r`; carries a graph through `r` only."""

    def bind(self, hamiltonian: Hamiltonian) -> BoundMap:
        """T for one batch of (t, z, p): a function of the control alone."""
        return BoundMap(self, hamiltonian)


@dataclass(frozen=True)
class PlainMap(FixedPointMap):
    """Plain gradient ascent, D = 1, as in arXiv 2602.00921.

    `step_size` None takes the one suited to the problem's curvature at moderate controls. The
    released code uses 1e-4.
    """

    step_size: float | None = parameter(None, optional(positive))

    def direction(self, hamiltonian: Hamiltonian, u: Tensor, r: Tensor) -> Tensor:
        """The gradient `r` (batch, m) times one step size."""
        return r * (hamiltonian.plain_step_size if self.step_size is None else self.step_size)


@dataclass(frozen=True)
class ScaledMap(FixedPointMap):
    """Ascent preconditioned by the problem's positive curvature scaling; the default choice."""

    damping: float = parameter(1.0, finite)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"`damping` must be in (0, 1], got {self.damping}")

    def direction(self, hamiltonian: Hamiltonian, u: Tensor, r: Tensor) -> Tensor:
        """The gradient `r` (batch, m) times the curvature scaling and the damping."""
        step = hamiltonian.curvature_scaling(u) * r
        return step if self.damping == 1.0 else step * self.damping


@dataclass(frozen=True)
class NewtonMap(FixedPointMap):
    """D the inverse of the (negative) Hessian: one tracked step gives the exact gradient.

    Undamped, so it converges from nearby only; `Newton` is the safeguarded solver.
    """

    def direction(self, hamiltonian: Hamiltonian, u: Tensor, r: Tensor) -> Tensor:
        """Newton's direction for the gradient `r`, (batch, m)."""
        return hamiltonian.newton_direction(u, r)


class BoundMap:
    """T for one Hamiltonian: `bound(u)` is one application, (batch, m) -> (batch, m)."""

    def __init__(self, recipe: FixedPointMap, hamiltonian: Hamiltonian) -> None:
        self.recipe, self.hamiltonian = recipe, hamiltonian

    def __call__(self, u: Tensor) -> Tensor:
        """T(u), tracked through whatever requires grad."""
        return self.step(u, self.hamiltonian.grad(u))

    def step(self, u: Tensor, gradient: Tensor) -> Tensor:
        """T(u) for a gradient of H at `u` that is already at hand."""
        return self.hamiltonian.project(u + self.scale(u, gradient))

    def scale(self, u: Tensor, r: Tensor) -> Tensor:
        """alpha D r at `u`: an approximation of (-Hessian)^-1 r."""
        return self.recipe.direction(self.hamiltonian, u, r)

    def residual(self, u: Tensor, gradient: Tensor | None = None) -> Tensor:
        """How far `u` is from maximising H, in units of grad H: (batch,).

        |grad H(u)|, without the components in which `u` lies on a bound and the gradient points
        out of the admissible set: zero exactly where the first-order conditions hold. (Bounds hold
        one component at a time, see `Hamiltonian.interior`.) |P(u + grad H) - u| is zero at the
        same points, but where a gradient is longer than the way to the bound it is as small as
        the control, whatever the error.
        """
        if gradient is None:
            gradient = self.hamiltonian.grad(u)
        if self.hamiltonian.constrained:
            # A gradient that is NaN moves the control to NaN, and stays in the residual.
            stays = self.hamiltonian.project(u + gradient) == u
            gradient = gradient.masked_fill(stays, 0.0)
        residual: Tensor = torch.linalg.vector_norm(gradient, dim=-1)
        return residual


#: maps by the name used on the command line
MAPS: dict[str, FixedPointMap] = {
    "plain": PlainMap(),
    "scaled": ScaledMap(),
    "newton": NewtonMap(),
}
