"""A network that outputs costates: exact on a Newton map, and of no potential."""

from __future__ import annotations

import pytest
import torch

from baselines import METHODS, build_policy
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.maps import NewtonMap
from jfbcore.problems import Quadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import Newton
from jfbcore.value_network import ValueNetwork


def policy_of(n_agents: int, network=ValueNetwork):
    problem = Quadrotor(n_agents=n_agents, n_steps=4, dtype=torch.float64)
    return build_policy(
        problem, METHODS["costate-network"], fixed_point_map=NewtonMap(),
        solver=Newton(tolerance=1e-12), width=8, network=network,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.mark.parametrize(("n_agents", "network"), [(1, ValueNetwork), (3, SharedValueNetwork)])
def test_the_gradient_is_that_of_finite_differences(n_agents, network):
    """On a Newton map jfb's gradient is exact; one direction in parameter space says so."""
    policy = policy_of(n_agents, network)
    states = policy.problem.sample_initial_states(3, torch.Generator().manual_seed(1))
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(rollout(policy, states).cost.mean(), parameters)
    generator = torch.Generator().manual_seed(2)
    moves = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, moves, strict=True)).item()
    step, costs = 1e-6, []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter.add_(sign * step * move)
            costs.append(rollout(policy, states).cost.mean().item())
    # Central differences: errors of step^2 and of rounding over step.
    assert slope == pytest.approx((costs[0] - costs[1]) / (2 * step), rel=1e-5)


def test_its_parameters_are_about_as_many_as_the_value_networks():
    own, value = (
        sum(p.numel() for p in build_policy(Quadrotor(6), METHODS[name]).parameters())
        for name in ("costate-network", "jfb")
    )
    assert 0.8 < own / value < 1.6
