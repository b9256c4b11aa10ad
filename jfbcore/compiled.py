"""The time step of a rollout through torch.compile."""

from __future__ import annotations

import types

import torch
from torch import Tensor

from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems.base import Time
from jfbcore.rollout import Step, advance


def compilation_reason(policy: Policy) -> str | None:
    """None, or why the time step of `policy` cannot be compiled into one graph."""
    if not isinstance(policy, HamiltonianPolicy):
        return None
    return policy.gradient.supports_compilation(policy.solver)


class CompiledStep:
    """A drop-in for `jfbcore.rollout.advance` that torch.compile has fused into one graph.

    Costate, inner solve with its stopping test, re-attached control, dynamics and running cost.
    Times enter as tensors, so a coarser grid needs no new graph; another batch size or a warm
    start does. The first call of each kind takes the seconds that compiling takes. `backend` is
    torch.compile's. Raises ValueError with the reason where `policy` cannot be compiled.
    """

    def __init__(self, policy: Policy, backend: str = "inductor") -> None:
        if (reason := compilation_reason(policy)) is not None:
            raise ValueError(reason)
        # A code object of its own: torch.compile limits the graphs it keeps per code object, and
        # one process may compile many policies.
        own = types.FunctionType(advance.__code__.replace(), advance.__globals__, "advance")
        self._compiled = torch.compile(own, backend=backend, dynamic=False, fullgraph=True)

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
        time, length = (torch.as_tensor(x, dtype=z.dtype, device=z.device) for x in (t, h))
        return self._compiled(policy, time, length, z, running, start, penalties)
