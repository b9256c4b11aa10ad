"""What a solver is and what it returns. Solvers know nothing of gradients."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from jfbcore._validate import optional, parameter, parameters, positive, positive_int
from jfbcore.solvers.iterate import Iterative, Run, State, iterate, take

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap
    from jfbcore.problems.base import Problem


class Status(enum.Enum):
    """How an inner solve ended; the value is the message."""

    CONVERGED = "every sample reached the tolerance"
    FIXED_ITERATIONS = "ran exactly the iterations asked for, without a stopping test"
    MAX_ITERATIONS = "the iteration limit came before the tolerance"
    STALLED = "no further iteration helped, because of rounding or a cycle, before the tolerance"
    NON_FINITE = "the control or its residual stopped being finite"


@dataclass(frozen=True)
class Solution:
    """A control, and how well it solves max_u H.

    `control`: (batch, m). `residual`: (batch,), see `BoundMap.residual`. `iterations`: how often
    the map (or Newton step) was applied, the same for all samples of a batch. `tolerance`: the
    residual asked for, None in the fixed-iteration mode. `limit`: iterations at which the solver
    would have given up; None where it does not stop before it.
    """

    control: Tensor
    residual: Tensor
    iterations: int
    tolerance: float | None
    limit: int | None = None

    @property
    def converged(self) -> Tensor:
        """Mask (batch,): samples whose residual meets the tolerance (finite, when fixed)."""
        if self.tolerance is None:
            return torch.isfinite(self.residual)
        return self.residual <= self.tolerance

    @property
    def status(self) -> Status:
        """The worst status over the batch. Reads the residual, so it waits for the device."""
        worst = worst_status(self.residual, self.tolerance)
        early = self.limit is not None and bool(self.iterations < self.limit)
        return Status.STALLED if early and worst is Status.MAX_ITERATIONS else worst


def worst_status(residual: Tensor, tolerance: float | None) -> Status:
    """The status of the sample that ended worst. Waits for the device."""
    if not bool(torch.isfinite(residual).all()):
        return Status.NON_FINITE
    if tolerance is None:
        return Status.FIXED_ITERATIONS
    return Status.CONVERGED if bool((residual <= tolerance).all()) else Status.MAX_ITERATIONS


@dataclass(frozen=True, kw_only=True)
class Solver(abc.ABC):
    """Finds u = T(u) without a graph.

    `tolerance`: residual at which to stop; None runs exactly `max_iterations` iterations.
    `check_interval`: iterations between stopping tests (each waits for the device).
    """

    tolerance: float | None = parameter(1e-4, optional(positive))
    max_iterations: int = parameter(500, positive_int)
    check_interval: int = parameter(1, positive_int)
    #: steps that `repeat` is first asked for, where a rollout needs fewer
    fewest_repeats: ClassVar[int] = 1

    def __post_init__(self) -> None:
        parameters(self)

    @abc.abstractmethod
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """Iterate from `initial` (batch, m). Non-convergence is in the result, not raised."""

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why this solver cannot serve `problem`."""
        return None

    def repeat(
        self, fixed_point_map: BoundMap, initial: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        """Control (batch, m) and residual (batch,) after exactly `times` steps, none tested.

        Nothing in it waits for the device. Raises ValueError where `supports_repeat` has a reason.
        """
        raise ValueError(self.supports_repeat())

    def supports_repeat(self) -> str | None:
        """None, or the reason why the solver cannot take a given number of steps untested."""
        return f"{type(self).__name__} takes no steps to count; use Picard or Newton"

    def solution(self, control: Tensor, residual: Tensor, iterations: int) -> Solution:
        """A Solution with this solver's tolerance, which decides its status."""
        return Solution(control, residual, iterations, self.tolerance)


class IterativeSolver(Solver, Iterative):
    """A solver as the loop in `iterate` runs it: `init`, `step` and `terminate`.

    A state is a NamedTuple of tensors with a field `control` (batch, m), where grad H is evaluated
    once an iteration.
    """

    @abc.abstractmethod
    def init(self, fixed_point_map: BoundMap, control: Tensor) -> State:
        """The state before the first step from `control` (batch, m)."""

    def init_untested(self, fixed_point_map: BoundMap, control: Tensor) -> State:
        """As `init`, for steps of which nobody reads how far they came."""
        return self.init(fixed_point_map, control)

    def evaluate(self, fixed_point_map: BoundMap, state: State) -> Tensor:
        """grad H at the state's control, (batch, m)."""
        return fixed_point_map.hamiltonian.grad(state.control)

    def terminate(self, fixed_point_map: BoundMap, state: State, evaluated: Tensor) -> Tensor:
        """The residual (batch,) of what `answer` would return now."""
        return fixed_point_map.residual(state.control, evaluated)

    def position(self, state: State) -> Tensor | None:
        """The control (batch, m): no step helps where it moves by rounding alone."""
        control: Tensor = state.control
        return control

    def result(self, run: Run) -> Solution:
        """What a run of the loop has found."""
        return Solution(
            run.point, run.residual, run.iterations, self.tolerance, self.max_iterations
        )

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """Run the loop from `initial` (batch, m). Non-convergence is in the result, not raised."""
        state = self.init(fixed_point_map, initial)
        return self.result(iterate(self, fixed_point_map, state, self.max_iterations))

    @torch.no_grad()
    def repeat(
        self, fixed_point_map: BoundMap, initial: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        """Control (batch, m) and residual (batch,) after exactly `times` steps, none tested."""
        if (reason := self.supports_repeat()) is not None:
            raise ValueError(reason)
        state = self.init_untested(fixed_point_map, initial)
        state = take(self, fixed_point_map, state, times)
        residual = self.terminate(fixed_point_map, state, self.evaluate(fixed_point_map, state))
        return self.answer(state, residual), residual
