"""The residual core of the sweep, as formula and as Triton kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jfbcore.kernels.costate import forward_backward
from jfbcore.kernels.sweep import (
    MOST_ROWS,
    core,
    core_formula,
    core_vjp,
    core_vjp_formula,
    kernels_serve,
)
from jfbcore.value_network import ValueNetwork

F64 = torch.float64
STEP = 0.5

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


def float32_inputs(
    rows: int, width: int, depth: int = 3
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """a_0, a cotangent, readout, weights and biases; the first row of a_0 saturates tanh."""
    random = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    a0, pulled_bar, readout = normal(rows, width), normal(rows, width), normal(width)
    a0[0] *= 30.0
    weights = [normal(width, width) / width**0.5 for _ in range(depth - 1)]
    return a0, pulled_bar, readout, weights, [normal(width) for _ in range(depth - 1)]


def assert_relatively_close(found: Tensor, exact: Tensor) -> None:
    # float32 rounds to 6e-8; the chain of eight products of a hundred terms leaves a few of those.
    error = (found.double().cpu() - exact).abs().max() / exact.abs().max()
    assert error < 2e-6


def in_float64(inputs):
    return [[y.double() for y in x] if isinstance(x, list) else x.double() for x in inputs]


@every_depth
def test_core_is_what_the_sweep_of_the_network_pulls_back(depth):
    network, z, a0 = network_and_opening(depth)
    expected = forward_backward(network.residual_step, 0.7, z, *network._sweep_parameters()).pulled
    layers = (network.readout, list(network.weights), list(network.biases), network.residual_step)
    # Rounding of sums of a few terms of order one.
    torch.testing.assert_close(core(a0, *layers), expected, rtol=1e-12, atol=1e-12)


@every_depth
def test_vjp_is_that_of_autograd(depth):
    network, _, a0 = network_and_opening(depth)
    layers = (network.readout, list(network.weights), list(network.biases), network.residual_step)
    pulled_bar = torch.randn(a0.shape, generator=torch.Generator().manual_seed(9), dtype=F64)
    leaf = a0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(core_formula(leaf, *layers), leaf, pulled_bar)
    found = core_vjp(a0, pulled_bar, *layers)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def interpreted(rows: int, width: int, depth: int) -> None:
    """The kernels against the formulas: runs in a process with TRITON_INTERPRET=1."""
    from jfbcore.kernels._sweep_triton import launch_core, launch_core_vjp

    a0, pulled_bar, *layers = float32_inputs(rows, width, depth)
    exact_a0, exact_bar, *exact_layers = in_float64((a0, pulled_bar, *layers))
    assert_relatively_close(
        launch_core(a0, *layers, STEP), core_formula(exact_a0, *exact_layers, STEP)
    )
    assert_relatively_close(
        launch_core_vjp(a0, pulled_bar, *layers, STEP),
        core_vjp_formula(exact_a0, exact_bar, *exact_layers, STEP),
    )
    rest = torch.arange(3.0 * rows).view(rows, 3)
    wider = launch_core(torch.cat((a0, rest), 1), *layers, STEP)
    assert torch.equal(wider[:, width:], rest)
    assert torch.equal(wider[:, :width], launch_core(a0, *layers, STEP))
    wider = launch_core_vjp(a0, torch.cat((pulled_bar, rest), 1), *layers, STEP)
    assert torch.equal(wider[:, width:], rest)
    assert torch.equal(wider[:, :width], launch_core_vjp(a0, pulled_bar, *layers, STEP))


# Of 149 rows each program takes two, the last one of them beyond the end.
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("rows", "width", "depth"), [(50, 96, 3), (50, 100, 3), (50, 50, 3), (149, 20, 2)]
)
def test_kernels_in_the_interpreter(rows, width, depth):
    program = f"from {__name__} import interpreted; interpreted({rows}, {width}, {depth})"
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        timeout=300,
    )


def test_further_columns_are_handed_on():
    network, _, a0 = network_and_opening(3)
    layers = (network.readout, list(network.weights), list(network.biases), network.residual_step)
    rest = torch.arange(10, dtype=F64).view(5, 2)
    wider = core(torch.cat((a0, rest), 1), *layers)
    assert torch.equal(wider, torch.cat((core(a0, *layers), rest), 1))
    bars = core_vjp(a0, torch.cat((a0, rest), 1), *layers)
    assert torch.equal(bars, torch.cat((core_vjp(a0, a0, *layers), rest), 1))


def test_kernels_are_only_for_cuda():
    a0, _, _, weights, _ = float32_inputs(3, 5)
    assert not kernels_serve(a0, weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("rows", "width"), [(50, 96), (50, 100), (50, 50), (MOST_ROWS - 1, 96)])
def test_kernels_on_a_gpu_and_in_a_captured_graph(rows, width):
    inputs = float32_inputs(rows, width)
    exact_a0, exact_bar, *exact_layers = in_float64(inputs)
    exact = core_formula(exact_a0, *exact_layers, STEP)
    exact_vjp = core_vjp_formula(exact_a0, exact_bar, *exact_layers, STEP)
    a0, pulled_bar, *layers = [
        [y.cuda() for y in x] if isinstance(x, list) else x.cuda() for x in inputs
    ]
    assert kernels_serve(a0, layers[1])
    assert_relatively_close(core(a0, *layers, STEP), exact)
    assert_relatively_close(core_vjp(a0, pulled_bar, *layers, STEP), exact_vjp)
    compiled = torch.compile(core, fullgraph=True)
    assert_relatively_close(compiled(a0, *layers, STEP), exact)

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pulled = core(a0, *layers, STEP)
        a0_bar = core_vjp(a0, pulled_bar, *layers, STEP)
    a0.neg_()
    graph.replay()
    assert_relatively_close(pulled, core_formula(-exact_a0, *exact_layers, STEP))
    assert_relatively_close(a0_bar, core_vjp_formula(-exact_a0, exact_bar, *exact_layers, STEP))
