"""Anderson acceleration of the fixed-point map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Windowed, regularised, safeguarded Anderson acceleration (type II), per sample.

    Prefer it where T contracts slowly; it stores 2 `window` controls. `regularisation` is
    relative to the trace of the normal matrix. Safeguard: a sample whose increment |T(u) - u|
    grew by more than `growth` over its best goes back to a plain step from that best.
    Source: Walker and Ni, SIAM J. Numer. Anal. 49 (2011), with Tikhonov regularisation.
    """

    window: int = 5
    regularisation: float = 1e-8
    growth: float = 2.0

    def __post_init__(self) -> None:
        # Named, because a slotless super() does not survive dataclass(frozen=True) rewriting.
        Solver.__post_init__(self)
        _validate.positive_int("window", self.window)
        _validate.non_negative("regularisation", self.regularisation)
        _validate.positive("growth", self.growth)

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        u, iterations = initial, 0
        gradient_of = fixed_point_map.hamiltonian.grad
        differences = _History(self.window, self.regularisation)
        best_image = best_norm = None
        while True:
            gradient = gradient_of(u)
            last = iterations >= self.max_iterations
            if last or (self.tolerance is not None and iterations % self.check_interval == 0):
                residual = fixed_point_map.residual(u, gradient)
                if last or (
                    self.done(iterations, residual) and not _recoverable(residual, best_norm)
                ):
                    return self.solution(u, residual, iterations)
            image = fixed_point_map.step(u, gradient)
            increment = image - u
            norm = torch.linalg.vector_norm(increment, dim=-1, keepdim=True)
            if best_image is None or best_norm is None:
                best_image, best_norm = image, norm
            # Written so that a NaN counts as grown.
            failed = ~(norm <= self.growth * best_norm)
            accelerated = differences.extrapolate(image, increment, failed)
            u = torch.where(failed, best_image, fixed_point_map.hamiltonian.project(accelerated))
            improved = norm < best_norm
            best_image = torch.where(improved, image, best_image)
            best_norm = torch.where(improved, norm, best_norm)
            iterations += 1


def _recoverable(residual: Tensor, best_norm: Tensor | None) -> bool:
    """Whether a sample is not a number that was one before: the safeguard brings it back."""
    if best_norm is None:
        return False
    return bool((residual.isnan() & best_norm.squeeze(-1).isfinite()).any())


class _History:
    """The last differences of T(u) and of T(u) - u, and the extrapolation they allow."""

    def __init__(self, window: int, regularisation: float) -> None:
        self._window, self._regularisation = window, regularisation
        self._images: list[Tensor] = []
        self._increments: list[Tensor] = []
        self._previous: tuple[Tensor, Tensor, Tensor] | None = None

    def extrapolate(self, image: Tensor, increment: Tensor, failed: Tensor) -> Tensor:
        """argmin over the window's affine combinations of the increment, mapped to T(u).

        `failed` (batch, 1): samples whose present point teaches nothing, finite or not.
        """
        if self._previous is not None:
            unusable = failed | self._previous[2]
            self._images.append(torch.where(unusable, 0.0, image - self._previous[0]))
            self._increments.append(torch.where(unusable, 0.0, increment - self._previous[1]))
            del self._images[: -self._window], self._increments[: -self._window]
        self._previous = (image, increment, failed)
        if not self._increments:
            return image
        d_increment = torch.stack(self._increments, 1)
        normal = d_increment @ d_increment.transpose(1, 2)
        trace = normal.diagonal(dim1=1, dim2=2).sum(1)
        shift = (self._regularisation * trace).clamp_min(torch.finfo(image.dtype).tiny)
        normal.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(1))
        target = d_increment @ increment.unsqueeze(2)
        weights, _ = torch.linalg.solve_ex(normal, target)
        # A singular system (all differences zero: converged) has nothing to extrapolate.
        weights = torch.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0)
        return image - (torch.stack(self._images, 1).transpose(1, 2) @ weights).squeeze(2)
