"""Newton's method with backtracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from jfbcore import _validate
from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Projected Newton ascent on H, each sample backtracking until H stops decreasing.

    Uses the problem's own inverse-Hessian product and ignores the map's scaling. Prefer it for
    ground truth and tight tolerances; quadratic near the maximiser.
    """

    max_iterations: int = 100
    max_halvings: int = 30
    # Halvings count as steps there, and another number of steps takes seconds to compile.
    fewest_repeats: ClassVar[int] = 8

    def __post_init__(self) -> None:
        Solver.__post_init__(self)
        _validate.positive_int("max_halvings", self.max_halvings)

    def supports_compilation(self) -> str | None:
        return None

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        if torch.compiler.is_compiling():
            return self._solve_in_graph(fixed_point_map, initial)
        hamiltonian = fixed_point_map.hamiltonian
        u, iterations = initial, 0
        value = hamiltonian.control_part(u)
        while True:
            gradient = hamiltonian.grad(u)
            last = iterations >= self.max_iterations
            if last or (self.tolerance is not None and iterations % self.check_interval == 0):
                residual = fixed_point_map.residual(u, gradient)
                if last or self.done(iterations, residual):
                    return self.solution(u, residual, iterations)
            direction = hamiltonian.newton_direction(u, gradient)
            u, value = self._search(fixed_point_map, u, value, direction)
            iterations += 1

    def _search(
        self, fixed_point_map: BoundMap, u: Tensor, value: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        step = torch.ones_like(value)
        for _ in range(self.max_halvings):
            candidate, found, rejected = _try(fixed_point_map, u, value, direction, step)
            if not bool(rejected.any()):
                break
            step = torch.where(rejected, 0.5 * step, step)
        return (
            torch.where(rejected.unsqueeze(-1), u, candidate),
            torch.where(rejected, value, found),
        )

    def supports_repeat(self) -> str | None:
        if self.tolerance is None:
            return "Newton without a tolerance halves its steps on the host; give a tolerance"
        return None

    @torch.no_grad()
    def repeat(
        self, fixed_point_map: BoundMap, initial: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        """`times` trial steps, each with its own acceptance per sample."""
        state = self._start(fixed_point_map, initial)
        for _ in range(times):
            state = self._trip(fixed_point_map, state, together=False)
        return state.control, state.residual

    def _start(self, fixed_point_map: BoundMap, initial: Tensor) -> _Search:
        hamiltonian = fixed_point_map.hamiltonian
        gradient, value = hamiltonian.grad(initial), hamiltonian.control_part(initial)
        zero = torch.zeros((), dtype=torch.int64, device=initial.device)
        return _Search(
            zero,
            zero.clone(),
            initial.clone(),
            value,
            hamiltonian.newton_direction(initial, gradient),
            torch.ones_like(value),
            fixed_point_map.residual(initial, gradient),
        )

    def _trip(self, fixed_point_map: BoundMap, state: _Search, *, together: bool) -> _Search:
        """Try one step length; once it is accepted, or the halvings are used up, move and take a
        new direction: all samples `together`, as the loop on the host does, or each by itself."""
        hamiltonian = fixed_point_map.hamiltonian
        iterations, halvings, u, value, direction, step, residual = state
        candidate, found, rejected = _try(fixed_point_map, u, value, direction, step)
        accepted = ~(rejected.any() if together else rejected)
        moves = accepted | (halvings + 1 >= self.max_halvings)
        kept = rejected | ~moves
        taken = moves if together else moves.unsqueeze(-1)
        u = torch.where(kept.unsqueeze(-1), u, candidate)
        value = torch.where(kept, value, found)
        gradient = hamiltonian.grad(u)
        return _Search(
            iterations + moves,
            torch.where(moves, 0, halvings + 1),
            u,
            value,
            torch.where(taken, hamiltonian.newton_direction(u, gradient), direction),
            torch.where(moves, 1.0, torch.where(rejected, 0.5 * step, step)),
            torch.where(moves, fixed_point_map.residual(u, gradient), residual),
        )

    def _solve_in_graph(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """The same iteration as an operator of a compiled graph, without tests on the host."""

        def unfinished(*tensors: Tensor) -> Tensor:
            state = _Search(*tensors)
            going = state.iterations < self.max_iterations
            if self.tolerance is None:
                return going
            return going & (state.residual > self.tolerance).any()

        def trip(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._trip(fixed_point_map, _Search(*tensors), together=True))

        last = _Search(*while_loop(unfinished, trip, tuple(self._start(fixed_point_map, initial))))
        # A tensor while a compiler traces.
        iterations: Any = last.iterations
        return self.solution(last.control, last.residual, iterations)


class _Search(NamedTuple):
    """Where the search stands: counts (), then control and direction (batch, m), the value of H,
    the step length and the residual (batch,)."""

    iterations: Tensor
    halvings: Tensor
    control: Tensor
    value: Tensor
    direction: Tensor
    step: Tensor
    residual: Tensor


def _try(
    fixed_point_map: BoundMap, u: Tensor, value: Tensor, direction: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The control a `step` (batch,) along `direction` from `u`, its H, and who has to reject it."""
    hamiltonian = fixed_point_map.hamiltonian
    candidate = hamiltonian.project(u + step.unsqueeze(-1) * direction)
    found = hamiltonian.control_part(candidate)
    # Close to the maximiser the gain drowns in rounding; a loss of that size is accepted.
    slack = 16 * torch.finfo(u.dtype).eps * value.abs().clamp_min(1.0)
    return candidate, found, ~(found >= value - slack)
