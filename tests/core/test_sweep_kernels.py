"""The residual core of the sweep, as formula and as Triton kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jfbcore.kernels.sweep import core, core_vjp
from jfbcore.network import ValueNetwork, _sweep

F64 = torch.float64

every_depth = pytest.mark.parametrize("depth", [1, 2, 3, 4])


def network_and_opening(depth: int, *, width: int = 7) -> tuple[ValueNetwork, Tensor, Tensor]:
    """A network without special parameters, states z, and the a_0 that these give at t = 0.7."""
    random = torch.Generator().manual_seed(depth)
    network = ValueNetwork(4, width, depth, dtype=F64, generator=random)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random, dtype=F64))
    z = torch.randn(5, 4, generator=random, dtype=F64)
    bias = network.opening_bias + 0.7 * network.opening_time
    return network, z, (z @ network.opening.T + bias).detach()


@every_depth
def test_core_is_what_the_sweep_of_the_network_pulls_back(depth):
    network, z, a0 = network_and_opening(depth)
    expected = _sweep(network.residual_step, 0.7, z, *network._sweep_parameters()).pulled
    layers = (network.readout, list(network.weights), list(network.biases), network.residual_step)
    # Rounding of sums of a few terms of order one.
    torch.testing.assert_close(core(a0, *layers), expected, rtol=1e-12, atol=1e-12)


@every_depth
def test_vjp_is_that_of_autograd(depth):
    network, _, a0 = network_and_opening(depth)
    layers = (network.readout, list(network.weights), list(network.biases), network.residual_step)
    pulled_bar = torch.randn(a0.shape, generator=torch.Generator().manual_seed(9), dtype=F64)
    leaf = a0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(core(leaf, *layers), leaf, pulled_bar)
    found = core_vjp(a0, pulled_bar, *layers)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
