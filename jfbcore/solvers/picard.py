"""Picard iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from jfbcore.solvers.base import IterativeSolver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


class PicardState(NamedTuple):
    """`control`: (batch, m)."""

    control: Tensor


@dataclass(frozen=True, kw_only=True)
class Picard(IterativeSolver):
    """u <- T(u). Converges wherever T contracts, at T's own rate; no memory beyond u."""

    def init(self, fixed_point_map: BoundMap, control: Tensor) -> PicardState:
        """The control (batch, m) alone."""
        return PicardState(control)

    def step(self, fixed_point_map: BoundMap, state: PicardState, evaluated: Tensor) -> PicardState:
        """The state after one application of the map."""
        return PicardState(fixed_point_map.step(state.control, evaluated))

    def supports_repeat(self) -> str | None:
        """None: every step is one application of the map."""
        return None
