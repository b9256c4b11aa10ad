"""Between the first time step and the last nothing travels between host and device.

A GPU is not needed to see it: on the meta device every tensor that the host makes and hands over is
one on the CPU among tensors that are not, and a number that the host reads is an operator of its
own. CUDA graphs cannot capture either, and outside of a graph each costs a wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines import METHODS, build_policy
from jfbcore.extras.compiled_rollout import Grid
from jfbcore.extras.stepped_rollout import SteppedRollout
from jfbcore.maps import MAPS
from jfbcore.policy import Policy
from jfbcore.problems import PROBLEMS, Problem, Quadrotor
from jfbcore.solvers import Newton, Picard

_BATCH, _STEPS = 5, 2
#: reads a number to the host, or asks where an index or a mask is true
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_assert_async")


class _Crossings(TorchDispatchMode):
    """Names of operators that touched the host, as they happen."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        self.operators += 1
        if any(wait in name for wait in _WAITS):
            self.names.append(name)
        out = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.names.append(f"{name} on the CPU")
        return out


def _crossings(policy: Policy, count: int) -> _Crossings:
    """What touches the host in one rollout with `count` solver steps and its way back."""
    problem = policy.problem
    states = torch.empty(_BATCH, problem.state_dim, device="meta")
    grid = Grid((_BATCH, problem.state_dim), _STEPS, False)
    engine = SteppedRollout(policy, lambda function: function)
    with torch.no_grad():
        # Once per grid, not per rollout: times and step length.
        engine._grids(_STEPS, states)
        with _Crossings() as crossings:
            flight = engine.run(grid, count, states)
            ones = states.new_ones(_BATCH)
            gradients = engine.gradients(flight, (ones, ones, torch.zeros_like(states)))
    assert all(gradient.device.type == "meta" for gradient in gradients)
    assert crossings.operators > 10 * _STEPS
    return crossings


#: each map once, each solver in each of its modes once
_SETTINGS = (
    ("plain", Picard(tolerance=None, max_iterations=4)),
    ("scaled", Picard(tolerance=1e-4)),
    ("newton", Newton()),
)


def _policies(problem: Problem) -> list[tuple[str, Callable[[], Policy]]]:
    """Every method on every map, by a name."""
    return [
        (
            f"{method}-{map_name}",
            lambda m=method, f=map_name, s=solver: build_policy(
                problem, METHODS[m], fixed_point_map=MAPS[f], solver=s
            ),
        )
        for method in METHODS
        if METHODS[method].supports(problem) is None
        for map_name, solver in _SETTINGS
    ]


@pytest.mark.parametrize(
    "name", [n if n == "quadrotor" else pytest.param(n, marks=pytest.mark.slow) for n in PROBLEMS]
)
def test_no_host_in_the_loop(name):
    problem = PROBLEMS[name](2, n_steps=_STEPS, device="meta")
    seen = set()
    for label, build in _policies(problem):
        try:
            policy = build()
        except (ValueError, NotImplementedError):
            continue  # this method and this solver do not go together, or not on the meta device
        if policy.supports_compiled_rollout() is not None:
            continue
        assert _crossings(policy, 4).names == [], label
        seen.add(label.split("-")[0])
    assert {"jfb", "implicit", "unrolled", "direct"} <= seen


class _Careless(Quadrotor):
    """Quadrotors whose cost makes a constant on the host, as careless code does."""

    def running_cost(self, t: Any, z: Tensor, u: Tensor) -> Tensor:
        weight = torch.tensor([1.0, 1.0])  # on the CPU
        return super().running_cost(t, z, u) * weight.to(z.device).mean()


def test_a_constant_of_the_host_is_seen():
    problem = _Careless(2, n_steps=_STEPS, device="meta")
    policy = build_policy(problem, METHODS["jfb"], solver=Picard(tolerance=None, max_iterations=2))
    names = _crossings(policy, 2).names
    assert any("on the CPU" in name for name in names)
