"""A time step that keeps its state and its solved control, and is evaluated again on the way back.

For gradients that do not need the inner iterates: the solved control is all that is left of the
inner problem, so that no second solve is needed to have the graph of the time step once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jfbcore.maps import BoundMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.solvers.base import Solution, Solver

#: next state (batch, n), running cost and HJB penalty so far (batch,)
Totals = tuple[Tensor, Tensor, Tensor | None]
#: policy, decision, time, time step, state, running cost and penalty so far -> `Totals`
Advance = Callable[..., Totals]


class RecomputedStep:
    """A time step of `policy`, one node of the graph that keeps n + m numbers a sample.

    The gradient is that of the same step with a graph, to rounding; it can be taken once. Raises
    ValueError where the policy's gradient cannot work from the solved control.
    """

    def __init__(self, policy: Policy, advance: Advance) -> None:
        assert isinstance(policy, HamiltonianPolicy)
        self.policy, self.advance = policy, advance
        self.repeated = policy.with_gradient(solver=_Given())
        self.parameters = tuple(p for p in policy.parameters() if p.requires_grad)

    def __call__(
        self,
        t: float,
        h: float,
        z: Tensor,
        running: Tensor,
        hjb: Tensor | None,
        start: Tensor | None,
    ) -> tuple[Decision, Tensor, Tensor, Tensor | None]:
        """The decision at time `t` and states `z` (batch, n), and what a step `h` makes of it."""
        policy = self.policy
        with torch.no_grad():
            found = policy(t, z, start)
            assert found.hamiltonian is not None
            bound = policy.fixed_point_map.bind(found.hamiltonian)
            control = policy.gradient.reattach(bound, policy.solver, found.control)
            flown = replace(found, control=control)
            totals = self.advance(policy, flown, t, h, z, running, hjb)
        control, *after = _Recomputed.apply(
            self, (t, h), (control, *totals), z, found.control, running, hjb, *self.parameters
        )
        z, running, hjb = after
        return replace(flown, control=control, hamiltonian=None), z, running, hjb


@dataclass(frozen=True, kw_only=True)
class _Given(Solver):
    """Takes where it starts for the solution."""

    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """`initial` (batch, m), with no residual evaluated."""
        return self.solution(initial, initial.new_zeros(initial.shape[0]), 0)


class _Recomputed(torch.autograd.Function):
    """`flown`, the control and the totals of a time step, from state, totals and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        step: RecomputedStep,
        times: tuple[float, float],
        flown: tuple[Tensor | None, ...],
        z: Tensor,
        kept: Tensor,
        running: Tensor,
        hjb: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.step, ctx.times, ctx.penalties = step, times, hjb is not None
        # Parameters too: autograd then notices where they have changed before the way back.
        ctx.save_for_backward(z, kept, *parameters)
        return flown

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
        z, kept, *_ = ctx.saved_tensors
        policy, (t, h) = ctx.step.repeated, ctx.times
        # The totals so far are added to, whatever they are.
        zero = z.new_zeros(z.shape[0])
        hjb = zero if ctx.penalties else None
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            decision = policy(t, z, kept)
            totals = ctx.step.advance(policy, decision, t, h, z, zero, hjb)
        results = zip((decision.control, *totals), bars, strict=True)
        used = [(x, bar) for x, bar in results if x is not None and x.requires_grad]
        outputs, cotangents = zip(*used, strict=True)
        z_bar, *rest = torch.autograd.grad(
            outputs, (z, *ctx.step.parameters), cotangents, allow_unused=True
        )
        return None, None, None, z_bar, None, *bars[2:], *rest
