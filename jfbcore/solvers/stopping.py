"""When an iteration ends: at its tolerance, or where no further step helps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: iterations between two looks at whether a solver still gets anywhere; most solves end before
_WINDOW = 16
#: units in the last place that a point may move by rounding alone: that of an exponential, a power
#: and a norm in the gradient, and what a contraction makes of them
_ROUNDINGS = 32


def within(residual: Tensor, tolerance: float) -> bool:
    """Whether every residual is within the tolerance or NaN. Waits for the device.

    A NaN can only get worse, and is no reason to leave the other samples where they are.
    """
    worst = residual.max().item()
    if math.isnan(worst):
        return not bool((residual > tolerance).any())
    return worst <= tolerance


def still(before: Tensor, after: Tensor) -> Tensor:
    """Which samples (batch,) rounding alone may have moved from `before` to `after`."""
    moved, size = (after - before).abs().amax(-1), after.abs().amax(-1)
    return moved <= _ROUNDINGS * torch.finfo(size.dtype).eps * size


class Watch:
    """Which samples rounding keeps from the tolerance: over a window of iterations their point
    moved by no more than rounding, and their residual did not fall.

    A tolerance below the rounding of a residual's own terms would otherwise cost every solve all of
    its iterations. A slow iteration moves little too, but its residual falls.
    """

    def __init__(self) -> None:
        self._next = _WINDOW
        self._before: tuple[Tensor, Tensor] | None = None
        self._stuck: Tensor | None = None

    @torch.no_grad()
    def finished(
        self, position: Tensor | None, residual: Tensor, iterations: int, tolerance: float
    ) -> bool:
        """Whether no sample above the tolerance gets anywhere. Waits for the device at times."""
        if position is None or iterations < self._next:
            return False
        earlier, self._before = self._before, (position.detach(), residual)
        self._next = iterations + _WINDOW
        if earlier is None:
            return False
        stuck = still(earlier[0], position) & ~(residual < earlier[1])
        self._stuck = stuck if self._stuck is None else self._stuck | stuck
        return not bool((~self._stuck & (residual > tolerance)).any())
