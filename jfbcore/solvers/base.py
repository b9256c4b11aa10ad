"""What a solver is and what it returns. Solvers know nothing of gradients."""

from __future__ import annotations

import abc
import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from jfbcore import _validate

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap
    from jfbcore.problems.base import Problem


class Status(enum.Enum):
    """How an inner solve ended; the value is the message."""

    CONVERGED = "every sample reached the tolerance"
    FIXED_ITERATIONS = "ran exactly the iterations asked for, without a stopping test"
    MAX_ITERATIONS = "the iteration limit came before the tolerance"
    NON_FINITE = "the control or its residual stopped being finite"


@dataclass(frozen=True)
class Solution:
    """A control, and how well it solves max_u H.

    `control`: (batch, m). `residual`: (batch,), see `BoundMap.residual`. `iterations`: how often
    the map (or Newton step) was applied, the same for all samples of a batch. `tolerance`: the
    residual asked for, None in the fixed-iteration mode.
    """

    control: Tensor
    residual: Tensor
    iterations: int
    tolerance: float | None

    @property
    def converged(self) -> Tensor:
        """Mask (batch,): samples whose residual meets the tolerance (finite, when fixed)."""
        if self.tolerance is None:
            return torch.isfinite(self.residual)
        return self.residual <= self.tolerance

    @property
    def status(self) -> Status:
        """The worst status over the batch. Reads the residual, so it waits for the device."""
        if not bool(torch.isfinite(self.residual).all()):
            return Status.NON_FINITE
        if self.tolerance is None:
            return Status.FIXED_ITERATIONS
        return Status.CONVERGED if bool(self.converged.all()) else Status.MAX_ITERATIONS


@dataclass(frozen=True, kw_only=True)
class Solver(abc.ABC):
    """Finds u = T(u) without a graph.

    `tolerance`: residual at which to stop; None runs exactly `max_iterations` iterations.
    `check_interval`: iterations between stopping tests (each waits for the device).
    """

    tolerance: float | None = 1e-4
    max_iterations: int = 500
    check_interval: int = 1

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            _validate.positive("tolerance", self.tolerance)
        _validate.positive_int("max_iterations", self.max_iterations)
        _validate.positive_int("check_interval", self.check_interval)

    @abc.abstractmethod
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """Iterate from `initial` (batch, m). Non-convergence is in the result, not raised."""

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why this solver cannot serve `problem`."""
        return None

    def supports_compilation(self) -> str | None:
        """None, or the reason why torch.compile cannot make one graph of `solve`."""
        name = type(self).__name__
        return f"{name} decides on the host when to stop; compile with Picard or Newton"

    def repeat(
        self, fixed_point_map: BoundMap, initial: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        """Exactly `times` steps from `initial`, none of them tested: control and residual.

        Nothing in it waits for the device. Raises ValueError where `supports_repeat` has a reason.
        """
        raise ValueError(self.supports_repeat())

    #: steps that `repeat` is first asked for, where a rollout needs fewer
    fewest_repeats: ClassVar[int] = 1

    def supports_repeat(self) -> str | None:
        """None, or the reason why the solver cannot take a given number of steps untested."""
        return f"{type(self).__name__} decides on the host between its steps; use Picard or Newton"

    def done(self, iteration: int, residual: Tensor) -> bool:
        """The stopping test: every sample within tolerance or not a number.

        A NaN can only get worse, and is no reason to leave the other samples where they are.
        """
        if self.tolerance is None or iteration % self.check_interval:
            return False
        worst = residual.max().item()
        if math.isnan(worst):
            return not bool((residual > self.tolerance).any())
        return not worst > self.tolerance

    def solution(self, control: Tensor, residual: Tensor, iterations: int) -> Solution:
        return Solution(control, residual, iterations, self.tolerance)
