"""Gradients of a policy's network for the cotangents of its outputs at all time steps at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.value_network import ValueNetwork

#: floats of one layer's activations for which gradients are evaluated at once
_CHUNK = 2**24
#: width of a layer that such chunks are sized for
_WIDEST = 128


def parameter_gradients(
    policy: Policy, times: Tensor, states: Tensor, output_bars: Tensor
) -> list[Tensor]:
    """The network's parameter gradients for the cotangents of its outputs at all time steps, from
    the states (steps, batch, n) at their beginnings and the cotangents (steps, batch, n or m)."""
    _, batch, width = states.shape
    dense = isinstance(policy, HamiltonianPolicy) and isinstance(policy.value_network, ValueNetwork)
    floats = max(width, _WIDEST) if dense else policy.problem.n_agents * _WIDEST
    together = max(1, _CHUNK // (batch * floats))
    signal = _Signal(policy)
    parameters = {name: p for name, p in signal.named_parameters() if p.requires_grad}
    totals: list[Tensor | None] = [None] * len(parameters)
    for first in range(0, len(times), together):
        part = slice(first, min(first + together, len(times)))
        t = times[part].unsqueeze(1).expand(-1, batch).reshape(-1)
        z, bars = states[part].flatten(0, 1), output_bars[part].flatten(0, 1)
        with torch.enable_grad():
            # Leaves of their own: the graph nodes of the parameters belong to the stream they were
            # made on, which a capture must not wait for.
            leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
            output = torch.func.functional_call(signal, leaves, (t, z))
            gradients = torch.autograd.grad(output, list(leaves.values()), bars, allow_unused=True)
        totals = [
            gradient if total is None else total if gradient is None else total.add_(gradient)
            for total, gradient in zip(totals, gradients, strict=True)
        ]
    return [
        torch.zeros_like(parameter) if total is None else total
        for parameter, total in zip(parameters.values(), totals, strict=True)
    ]


class _Signal(nn.Module):
    """What the network of `policy` says, as a module: (rows,), (rows, n) to (rows, n or m)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if isinstance(self.policy, HamiltonianPolicy):
            return self.policy.value_network.costate(t, z)
        control: Tensor = self.policy(t, z).control
        return control
