"""Compiled rollouts: drop-ins for `jfbcore.rollout.rollout` that run without an autograd graph.

Forwards nothing is recorded but, of each time step, the state, what the network says and what the
inner solver found. Backwards each time step is pulled back by itself, and the gradients of the
network's parameters are evaluated once for all time steps, as a few large products. On a processor
each direction is one compiled loop over time (`scanned_rollout`). On a GPU it is one kernel where
there is one for the policy (`fused_rollout`), else one compiled function for each time step
(`stepped_rollout`), and all of it is captured as CUDA graphs (`captured_rollout`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.extras.captured_rollout import CapturedRollout
from jfbcore.extras.fused_rollout import FusedRollout
from jfbcore.extras.scanned_rollout import ScannedRollout
from jfbcore.extras.stepped_rollout import Directions, SteppedRollout
from jfbcore.kernels import native, swarm
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import InnerStatistics, Rollout, starting_states
from jfbcore.rollout import rollout as eager_rollout

#: torch 2.13 and later: what other rollouts of a process have compiled does not count against the
#: number of variants that one function may have
_ISOLATED: dict[str, Any] = (
    {"isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)


class Grid(NamedTuple):
    """What a rollout is compiled or captured for: one grid, one batch, warm starts or not."""

    shape: tuple[int, int]
    n_steps: int
    warm_start: bool


class Engine(Protocol):
    """Runs one direction, then the other; knows nothing of autograd."""

    def fly(self, grid: Grid, states: Tensor) -> Any:
        """Roll out from `states` (batch, n): an object with running_cost, terminal_cost (batch,),
        final_state (batch, n), residual (steps, batch), iterations, and what the way back needs."""
        ...

    def pull_back(self, grid: Grid, flown: Any, bars: tuple[Tensor, ...]) -> Any:
        """Gradients of the policy's parameters for cotangents of the running cost (batch,), the
        terminal cost (batch,) and the final state (batch, n)."""
        ...


class CompiledRollout:
    """A drop-in for `jfbcore.rollout.rollout`, bound to one `policy`.

    The first call takes the seconds that compiling takes, and so does the first one for another
    batch size and, on a GPU, another grid. Costs and
    gradients equal those of the eager rollout to rounding; on a GPU with a tolerance the inner
    solver takes at least the steps it needs, and residuals are at or below the tolerance.
    `backend` is torch.compile's; None runs the same functions uncompiled. `capture` records whole
    rollouts as CUDA graphs; None does so on a GPU. Only one captured rollout may wait for its
    backward pass at a time.

    Raises ValueError with the reason where `policy` cannot be compiled, and for `penalties` and
    `segment`, which need the eager rollout.
    """

    def __init__(
        self, policy: Policy, *, backend: str | None = "inductor", capture: bool | None = None
    ) -> None:
        if (reason := policy.supports_compiled_rollout()) is not None:
            raise ValueError(reason)
        on_gpu = policy.problem.device.type == "cuda"
        if capture and not on_gpu:
            raise ValueError(f"`capture` needs a problem on a GPU, got {policy.problem.device}")
        self.policy = policy
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self._backend = backend
        if policy.problem.device.type == "cpu" and backend == "inductor":
            self.engine: Engine = ScannedRollout(policy)
            return
        fused = backend == "inductor" and native.wanted() and swarm.serves(policy)
        directions: Directions = (
            FusedRollout(policy) if fused else SteppedRollout(policy, self._compiled)
        )
        self.engine = CapturedRollout(policy, directions, on_gpu if capture is None else capture)

    @property
    def native_kernels(self) -> bool:
        """Whether kernels written by hand take whole rollouts, or on a CPU parts of them."""
        if isinstance(self.engine, CapturedRollout):
            return isinstance(self.engine.directions, FusedRollout)
        return native.serves(self.parameters[0])

    def __call__(
        self,
        policy: Policy,
        initial_states: Tensor,
        *,
        n_steps: int | None = None,
        warm_start: bool = False,
        penalties: bool = False,
        segment: int | None = None,
        record: bool = False,
    ) -> Rollout:
        """As `jfbcore.rollout.rollout`; without grad mode, or for one step, it is that function."""
        if policy is not self.policy:
            raise ValueError("`policy` must be the one this CompiledRollout was made for")
        initial_states = starting_states(policy, initial_states)
        problem = policy.problem
        n_steps = problem.n_steps if n_steps is None else _validate.positive_int("n_steps", n_steps)
        # With one time step there is nothing to loop over, and Inductor cannot build such a loop.
        if not torch.is_grad_enabled() or (
            n_steps == 1 and isinstance(self.engine, ScannedRollout)
        ):
            return eager_rollout(
                policy,
                initial_states,
                n_steps=n_steps,
                warm_start=warm_start,
                penalties=penalties,
                record=record,
            )
        left_out = {"penalties": penalties, "segment": segment}
        for name, value in {**left_out, "record": record}.items():
            if value:
                raise ValueError(f"`{name}` must be left out of a compiled rollout, got {value!r}")
        batch, width = initial_states.shape
        grid = Grid((batch, width), n_steps, warm_start)
        running, terminal, final, residual, iterations = _Differentiable.apply(
            self.engine, grid, initial_states, *self.parameters
        )
        inner = InnerStatistics()
        if isinstance(policy, HamiltonianPolicy):
            inner.iterations.append(iterations)
            inner.residuals.append(residual)
        return Rollout(running, terminal, final, inner)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self._backend is None:
            return function
        return torch.compile(
            function,
            backend=self._backend,
            dynamic=False,  # but for what is marked: sizes of other problems are not these
            fullgraph=True,
            **_ISOLATED,
        )


class _Differentiable(torch.autograd.Function):
    """A rollout as one node of the graph: parameters to costs."""

    @staticmethod
    def forward(
        ctx: Any, engine: Engine, grid: Grid, states: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        flown = engine.fly(grid, states)
        ctx.engine, ctx.grid, ctx.flown = engine, grid, flown
        # Tensors of their own: what is returned refers to this node, and what the node keeps must
        # not, or neither would ever be freed.
        costs = (flown.running_cost, flown.terminal_cost, flown.final_state)
        running, terminal, final = (tensor.detach() for tensor in costs)
        residual, iterations = flown.residual.detach(), flown.iterations.detach()
        ctx.mark_non_differentiable(residual, iterations)
        return running, terminal, final, residual, iterations

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = ctx.engine.pull_back(ctx.grid, ctx.flown, cotangents[:3])
        return None, None, None, *gradients
