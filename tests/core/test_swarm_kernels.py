"""Whole rollouts of quadrotors as one GPU kernel, against calls of one time step each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jfbcore import JFB, HamiltonianPolicy, Picard, PlainMap, ScaledMap, ValueNetwork
from jfbcore.extras import stepped_rollout
from jfbcore.extras.compiled_rollout import CompiledRollout, Grid
from jfbcore.extras.fused_rollout import FusedRollout
from jfbcore.kernels.swarm import serves, supports
from jfbcore.problems import Bicycle, Quadrotor
from jfbcore.rollout import rollout

_BATCH, _COUNT = 3, 4


def make_policy(n_agents: int, depth: int = 3, **options) -> HamiltonianPolicy:
    """A policy whose parameters are all of the order of those of a trained one."""
    problem = Quadrotor(n_agents, **{"n_steps": 3, "dtype": torch.float64} | options)
    random = torch.Generator().manual_seed(n_agents)
    network = ValueNetwork.for_problem(problem, depth=depth, generator=random)
    with torch.no_grad():
        for parameter in network.parameters():
            size = parameter.shape[-1] ** (-0.5 if parameter.dim() > 1 else 0.0)
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.add_((0.1 * size * noise).to(parameter))
    return HamiltonianPolicy(
        problem, network, fixed_point_map=ScaledMap(), solver=Picard(), gradient=JFB()
    )


def states_and_bars(policy: HamiltonianPolicy, batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """States that differ in every coordinate, and cotangents of all that a rollout returns."""
    random = torch.Generator().manual_seed(7)
    n, like = policy.problem.state_dim, policy.problem
    x, z_bar = (torch.randn(batch, n, generator=random, dtype=torch.float64) for _ in range(2))
    running_bar, terminal_bar = torch.rand(2, batch, generator=random, dtype=torch.float64)
    tensors = (0.5 * x, running_bar, 1e-2 * terminal_bar, z_bar)
    x, *bars = (tensor.to(like.device, like.dtype) for tensor in tensors)
    return x, tuple(bars)


def compare(
    n_agents: int, depth: int, warm_start: bool, device: str = "cpu", bound: float = 1e-11
) -> None:
    """The kernels in float64 against the formulas; on a CPU with TRITON_INTERPRET=1."""
    policy = make_policy(n_agents, depth, device=device)
    x, bars = states_and_bars(policy, _BATCH)
    grid = Grid((_BATCH, x.shape[1]), 3, warm_start)
    stepped = stepped_rollout.SteppedRollout(policy, lambda function: function)
    fused = FusedRollout(policy)
    with torch.no_grad():
        expected, found = stepped.run(grid, _COUNT, x), fused.run(grid, _COUNT, x)
        # Sums of up to 1,200 terms in another order.
        close = {"rtol": bound, "atol": bound}
        kept = found.flown.kept.transpose(2, 3).flatten(2)
        torch.testing.assert_close(found.flown.states, torch.stack(expected.states[:-1]), **close)
        torch.testing.assert_close(kept, torch.stack(expected.kept), **close)
        for name in ("final_state", "running_cost", "terminal_cost", "residual"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), **close)
        gradients = fused.gradients(found, bars), stepped.gradients(expected, bars)
        for one, other in zip(*gradients, strict=True):
            assert (one - other).norm() <= bound * (1.0 + other.norm())


_INTERPRETED = """
from triton.runtime import interpreter

# Its loops over a number given at run time fail with numpy 2.4 and later.
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
interpreter._patch_lang_tensor = patched

from {module} import compare
compare({arguments})
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("n_agents", "depth", "warm_start"),
    [(1, 3, False), (1, 2, True), (3, 3, True), (20, 2, False), (100, 3, False)],
)
def test_kernels_in_the_interpreter(n_agents, depth, warm_start):
    arguments = f"{n_agents}, {depth}, {warm_start}"
    subprocess.run(
        [sys.executable, "-c", _INTERPRETED.format(module=__name__, arguments=arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        timeout=300,
    )


def test_what_the_kernels_do_not_know_is_not_theirs():
    policy = make_policy(2)
    assert supports(policy) is None
    assert not serves(policy)  # on a CPU
    bicycles = Bicycle(2)
    network, options = ValueNetwork.for_problem(bicycles), {"gradient": JFB(), "solver": Picard()}
    others = [
        HamiltonianPolicy(bicycles, network, fixed_point_map=ScaledMap(), **options),
        HamiltonianPolicy(
            policy.problem, policy.value_network, fixed_point_map=PlainMap(), **options
        ),
        HamiltonianPolicy(
            policy.problem,
            policy.value_network,
            fixed_point_map=ScaledMap(),
            **options | {"gradient": JFB(tracked=2)},
        ),
        make_policy(2, depth=5),
        make_policy(129),
    ]
    for other in others:
        assert "kernels" in (supports(other) or "")
        with pytest.raises(ValueError, match="kernels"):
            FusedRollout(other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_agents", [1, 6, 20, 100])
@pytest.mark.parametrize("capture", [False, True])
def test_kernels_on_a_gpu(n_agents, capture):
    """Costs and gradients of 40 time steps in float32 against the eager rollout in float64."""
    there = make_policy(n_agents, n_steps=40, device="cuda", dtype=torch.float32)
    here = make_policy(n_agents, n_steps=40)
    x, _ = states_and_bars(here, 50)
    assert serves(there)
    roll = CompiledRollout(there, capture=capture)
    assert roll.native_kernels
    for _ in range(2):
        cost = roll(there, x.float().cuda()).cost
        gradient = torch.autograd.grad(cost.mean(), roll.parameters)
    exact = rollout(here, x).cost
    exact.mean().backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in here.parameters()]
    assert (cost.double().cpu() - exact).norm() < 1e-5 * exact.norm()
    total = torch.cat([g.flatten() for g in expected])
    found = torch.cat([g.double().cpu().flatten() for g in gradient])
    # The solver stops at 1e-4 in float64 and, one count for all time steps, below it here.
    assert (found - total).norm() < 1e-4 * total.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_agents", [1, 100])
def test_kernels_on_a_gpu_in_float64(n_agents):
    """The same steps in another order of summation: to 1e-10."""
    compare(n_agents, 3, True, device="cuda", bound=1e-10)
