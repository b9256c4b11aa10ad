"""Anderson acceleration of the fixed-point map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jfbcore._validate import non_negative, parameter, positive, positive_int
from jfbcore.solvers.base import IterativeSolver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


class AndersonState(NamedTuple):
    """Where the iteration stands.

    `control`, `best_control` (batch, m): the current point and the one of the least residual
    before it, `best_residual` (batch,). `best_image` (batch, m) and `best_norm` (batch, 1): T(u)
    and |T(u) - u| where the latter was least. Of the last point, None before the first step: T(u)
    and T(u) - u (batch, m), and whether it `failed` (batch, 1) and teaches nothing. `images`,
    `increments` (batch, at most window, m): the last differences of the two.
    """

    control: Tensor
    best_control: Tensor
    best_residual: Tensor
    best_image: Tensor
    best_norm: Tensor
    failed: Tensor | None
    image: Tensor | None
    increment: Tensor | None
    images: Tensor
    increments: Tensor


@dataclass(frozen=True, kw_only=True)
class Anderson(IterativeSolver):
    """Windowed, regularised, safeguarded Anderson acceleration (type II), per sample.

    Prefer it where T contracts slowly; it stores 2 `window` controls. `regularisation` is
    relative to the trace of the normal matrix, and at least a few roundings. Safeguard: a sample
    whose increment |T(u) - u| grew by more than `growth` over its best goes back to a plain step
    from that best. Returns, of each sample, the iterate of the least residual.
    Source: Walker and Ni, SIAM J. Numer. Anal. 49 (2011), with Tikhonov regularisation.
    """

    window: int = parameter(5, positive_int)
    regularisation: float = parameter(1e-8, non_negative)
    growth: float = parameter(2.0, positive)

    def supports_repeat(self) -> str | None:
        """None, or the reason why no given number of steps can be taken untested."""
        return "Anderson cannot go on from a control without its history; use Picard or Newton"

    def init(self, fixed_point_map: BoundMap, control: Tensor) -> AndersonState:
        """The state before the first step from `control` (batch, m), without a history."""
        nan, worst = (torch.full_like(control[:, :1], x) for x in (torch.nan, torch.inf))
        best, history = nan.squeeze(1), control.unsqueeze(1)[:, :0]
        return AndersonState(
            control, control, best, control, worst, None, None, None, history, history
        )

    def step(
        self, fixed_point_map: BoundMap, state: AndersonState, evaluated: Tensor
    ) -> AndersonState:
        """The state after one mixed step, and the window moved on by it."""
        u, images, increments = state.control, state.images, state.increments
        image = fixed_point_map.step(u, evaluated)
        increment = image - u
        # Which points are kept is decided without a graph: it is constant almost everywhere.
        with torch.no_grad():
            residual = fixed_point_map.residual(u, evaluated)
            best_residual = torch.fmin(state.best_residual, residual)
            better = (best_residual == residual).unsqueeze(-1)
            norm = torch.linalg.vector_norm(increment, dim=-1, keepdim=True)
            # Written so that a NaN counts as grown.
            failed = ~(norm <= self.growth * state.best_norm)
            improved = norm < state.best_norm
        accelerated = image
        if state.image is not None and state.increment is not None and state.failed is not None:
            # A failed point teaches nothing, whether it is finite or not.
            unusable = failed | state.failed
            images = self._append(images, torch.where(unusable, 0.0, image - state.image))
            increments = self._append(
                increments, torch.where(unusable, 0.0, increment - state.increment)
            )
            accelerated = image - self._correction(image, increment, images, increments)
        projected = fixed_point_map.hamiltonian.project(accelerated)
        return AndersonState(
            torch.where(failed, state.best_image, projected),
            torch.where(better, u, state.best_control),
            best_residual,
            torch.where(improved, image, state.best_image),
            torch.where(improved, norm, state.best_norm),
            failed,
            image,
            increment,
            images,
            increments,
        )

    def terminate(
        self, fixed_point_map: BoundMap, state: AndersonState, evaluated: Tensor
    ) -> Tensor:
        """The least residual so far, (batch,)."""
        return torch.fmin(state.best_residual, fixed_point_map.residual(state.control, evaluated))

    def answer(self, state: AndersonState, residual: Tensor) -> Tensor:
        """The control (batch, m) of the least residual."""
        best = (residual == state.best_residual).unsqueeze(-1)
        return torch.where(best, state.best_control, state.control)

    def _append(self, history: Tensor, latest: Tensor) -> Tensor:
        """The last entries of the history (batch, at most window, m), `latest` (batch, m) too."""
        return torch.cat((history, latest.unsqueeze(1)), 1)[:, -self.window :]

    def _correction(
        self, image: Tensor, increment: Tensor, images: Tensor, increments: Tensor
    ) -> Tensor:
        """What T(u) loses on the way to the affine combination of least increment, (batch, m)."""
        normal = increments @ increments.transpose(1, 2)
        trace = normal.diagonal(dim1=1, dim2=2).sum(1)
        # Nothing below rounding may be divided by, neither eigenvalues of the normal matrix nor
        # differences that are small against T(u): a tracked iteration divides derivatives too.
        eps = torch.finfo(image.dtype).eps
        rounding = (eps * torch.linalg.vector_norm(image.detach(), dim=-1)).square()
        shift = torch.maximum(max(self.regularisation, 8 * eps) * trace, rounding)
        shift = shift.clamp_min(torch.finfo(image.dtype).tiny)
        normal.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(1))
        target = increments @ increment.unsqueeze(2)
        weights, _ = torch.linalg.solve_ex(normal, target)
        # A singular system (all differences zero: converged) has nothing to extrapolate.
        weights = torch.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0)
        return (images.transpose(1, 2) @ weights).squeeze(2)
