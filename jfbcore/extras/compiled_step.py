"""The time steps of a rollout through torch.compile."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore._time import Time, time_tensor
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import Step, advance

#: time steps of one graph; more gain little (calls cost about as much as one step's kernels), and
#: the seconds a graph takes to build grow with them
SPAN = 4
#: tracked applications of T in one graph beyond which fewer time steps share it
_MOST_TRACKED = 16


def compilation_reason(policy: Policy) -> str | None:
    """None, or why the time step of `policy` cannot be compiled into one graph."""
    if not isinstance(policy, HamiltonianPolicy):
        return None
    return policy.gradient.supports_compilation(policy.solver)


class CompiledStep:
    """A drop-in for `jfbcore.rollout.advance` that torch.compile has fused into one graph.

    Costate, inner solve with its stopping test, re-attached control, dynamics and running cost.
    `several` takes `span` time steps in one graph, which spares most of what entering and leaving
    compiled code costs; None takes 4, or 1 where a gradient tracks so many applications of T that
    the graph would become too large. Times enter as tensors, so a coarser grid needs no new graph;
    another batch size or a warm start does. The first call of each kind takes the seconds that
    compiling takes; a grid that `span` does not divide needs a second graph for the steps left
    over. `backend` is torch.compile's. On a GPU what has a fixed number of iterations is captured
    as CUDA graphs, but for loops inside the graph, whose conditions the host reads: those of 20
    exact iterations and more, and of Newton's method. Raises ValueError with the reason where
    `policy` cannot be compiled.
    """

    def __init__(
        self, policy: Policy, backend: str = "inductor", *, span: int | None = None
    ) -> None:
        if (reason := compilation_reason(policy)) is not None:
            raise ValueError(reason)
        self.span = _default_span(policy) if span is None else _validate.positive_int("span", span)
        options: dict[str, Any] | None = None
        self._captured = False
        if backend == "inductor" and policy.problem.device.type == "cpu":
            # Kernels of microseconds: calling them from generated Python would take longer.
            options = {"cpp_wrapper": True}
        elif backend == "inductor" and _fixed_iterations(policy):
            options, self._captured = {"triton.cudagraphs": True}, True

        def compiled(function: Callable[..., Step]) -> Callable[..., Step]:
            # A code object of its own: torch.compile limits the graphs it keeps per code object,
            # and one process may compile many policies.
            own = types.FunctionType(
                function.__code__.replace(), function.__globals__, function.__name__
            )
            return torch.compile(
                own, backend=backend, dynamic=False, fullgraph=True, options=options
            )

        self._one, self._several = compiled(advance), compiled(_advance_several)

    def begin(self) -> None:
        """Called before a rollout's first time step: what the last one left may be overwritten."""
        if self._captured:
            torch.compiler.cudagraph_mark_step_begin()

    def __call__(
        self,
        policy: Policy,
        t: Time,
        h: float | Tensor,
        z: Tensor,
        running: Tensor,
        start: Tensor | None = None,
        penalties: bool = False,
    ) -> Step:
        return self._one(policy, *_tensors(z, t, h), z, running, start, penalties)

    def several(
        self,
        policy: Policy,
        t: Time,
        h: float | Tensor,
        z: Tensor,
        running: Tensor,
        start: Tensor | None = None,
        penalties: bool = False,
        warm_start: bool = False,
    ) -> Step:
        """Take `span` steps from time `t`; with `warm_start` each starts from the one before."""
        if warm_start and start is None:
            # The first time steps of a rollout then share the graph of the later ones.
            start = policy.problem.initial_control(t, z)
        return self._several(
            policy, *_tensors(z, t, h), z, running, start, penalties, warm_start, self.span
        )


def _fixed_iterations(policy: Policy) -> bool:
    """Whether no stopping test of a time step waits for the device."""
    return not isinstance(policy, HamiltonianPolicy) or policy.solver.tolerance is None


def _advance_several(
    policy: Policy,
    t: Tensor,
    h: Tensor,
    z: Tensor,
    running: Tensor,
    start: Tensor | None,
    penalties: bool,
    warm_start: bool,
    span: int,
) -> Step:
    steps = []
    for i in range(span):
        step = advance(policy, t + i * h, h, z, running, start, penalties)
        z, running = step.state, step.running_cost
        if warm_start:
            start = step.control
        steps.append(step)
    return Step(
        z,
        running,
        steps[-1].control,
        _stacked([step.iterations for step in steps], z),
        _stacked([step.residual for step in steps], z),
        _stacked([step.hjb_residual for step in steps], z),
    )


def _stacked(values: list[Any], like: Tensor) -> Tensor | None:
    if values[0] is None:
        return None
    if isinstance(values[0], int):
        return torch.tensor(values, device=like.device)
    return torch.stack(values)


def _tensors(like: Tensor, *times: float | Tensor) -> tuple[Tensor, ...]:
    return tuple(time_tensor(x, like) for x in times)


def _default_span(policy: Policy) -> int:
    if not isinstance(policy, HamiltonianPolicy):
        return SPAN
    return SPAN if policy.gradient.tracked_in_graph(policy.solver) * SPAN <= _MOST_TRACKED else 1
