"""Newton's method with backtracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from jfbcore._validate import parameter, positive_int
from jfbcore.solvers.base import IterativeSolver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap


class NewtonState(NamedTuple):
    """Where the search stands.

    `control`: (batch, m). `value`: the part of H that depends on it, (batch,). `length`: the next
    trial's share of the Newton step, (batch,). `halvings`: trials that this step has rejected, and
    `waits`: whether it needs another one; both () where the samples of a batch wait for each
    other, (batch,) where each moves by itself.
    """

    control: Tensor
    value: Tensor
    length: Tensor
    halvings: Tensor
    waits: Tensor


@dataclass(frozen=True, kw_only=True)
class Newton(IterativeSolver):
    """Projected Newton ascent on H, each sample backtracking until H stops decreasing.

    Uses the problem's own inverse-Hessian product and ignores the map's scaling. Prefer it for
    ground truth and tight tolerances; quadratic near the maximiser. An iteration is a Newton step,
    however many trials its length takes; it ends when every sample has accepted one.
    """

    max_iterations: int = parameter(100, positive_int)
    max_halvings: int = parameter(60, positive_int)
    # A step of `repeat` is one trial, and another number of steps takes seconds to compile.
    fewest_repeats: ClassVar[int] = 8

    def supports_repeat(self) -> str | None:
        """None, or the reason why no given number of steps can be taken untested."""
        if self.tolerance is None:
            return "Newton without a tolerance counts steps and not trials; give a tolerance"
        return None

    def init(self, fixed_point_map: BoundMap, control: Tensor) -> NewtonState:
        """The state before the first step from `control` (batch, m)."""
        u, value, length, *_ = self.init_untested(fixed_point_map, control)
        together = torch.zeros((), dtype=torch.int64, device=control.device)
        return NewtonState(u, value, length, together, together > 0)

    @torch.no_grad()
    def init_untested(self, fixed_point_map: BoundMap, control: Tensor) -> NewtonState:
        """As `init`, with the counters that steps without a test need."""
        value = fixed_point_map.hamiltonian.control_part(control)
        alone = torch.zeros_like(value, dtype=torch.int64)
        return NewtonState(control, value, torch.ones_like(value), alone, alone > 0)

    def pending(self, state: NewtonState) -> Tensor:
        """Which samples (batch,) still wait for a shorter step to be tried."""
        return state.waits

    def step(self, fixed_point_map: BoundMap, state: NewtonState, evaluated: Tensor) -> NewtonState:
        """Try one step length; move once it is accepted or the halvings are used up."""
        u, value, length, halvings, waits = state
        together = halvings.dim() == 0
        hamiltonian = fixed_point_map.hamiltonian
        direction = hamiltonian.newton_direction(u, evaluated)
        candidate = hamiltonian.project(u + length.unsqueeze(-1) * direction)
        # Which step length is taken is decided without a graph: it is constant almost everywhere.
        with torch.no_grad():
            reached = hamiltonian.control_part(candidate)
            # Close to the maximiser the gain drowns in rounding; a loss of that size is accepted.
            slack = 16 * torch.finfo(u.dtype).eps * value.abs().clamp_min(1.0)
            # No step length makes up for a value that is NaN already: nobody waits for it.
            rejected = ~((reached >= value - slack) | value.isnan())
            if together and not torch.compiler.is_compiling() and not bool(rejected.any()):
                # The loop on the host reads the same number; this saves a quarter of a solve.
                if waits is not _NOBODY:
                    length, halvings = torch.ones_like(length), torch.zeros_like(halvings)
                return NewtonState(candidate, reached, length, halvings, _NOBODY)
            waits = rejected.any() if together else rejected
            waits = waits & (halvings + 1 < self.max_halvings)
            kept = rejected | waits
            value = torch.where(kept, value, reached)
            length = torch.where(waits, torch.where(rejected, 0.5 * length, length), 1.0)
            halvings = torch.where(waits, halvings + 1, 0)
        u = torch.where(kept.unsqueeze(-1), u, candidate)
        return NewtonState(u, value, length, halvings, waits)


#: the end of a step that every sample accepted, told apart from others by identity
_NOBODY = torch.zeros((), dtype=torch.bool)
