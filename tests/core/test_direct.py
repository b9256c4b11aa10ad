"""The direct policy on every kind of network."""

from __future__ import annotations

import pytest
import torch

from baselines import DirectPolicy
from jfbcore.extras.network_defaults import network_defaults
from jfbcore.extras.shared_network import IndexedValueNetwork, SharedValueNetwork
from jfbcore.problems import Bicycle, Consumption, Quadrotor

PROBLEMS = [Quadrotor, Bicycle]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy_of(problem, network) -> DirectPolicy:
    """With outputs of order one: the untrained ones are all near zero."""
    policy = DirectPolicy(problem, generator=generator(), network=network)
    with torch.no_grad():
        for parameter in policy.network[-1].parameters():
            parameter.mul_(100.0)
    return policy


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_shared_one_is_a_single_agents_policy_for_each(problem):
    many, one = problem(3, dtype=torch.float64), problem(1, dtype=torch.float64)
    z = many.sample_initial_states(5, generator(1))
    times = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    shared, single = policy_of(many, SharedValueNetwork), DirectPolicy(one, generator=generator())
    single.load_state_dict(shared.state_dict())
    for t in (0.3, times):
        expected = [single(t, agent).control for agent in z.chunk(3, dim=1)]
        torch.testing.assert_close(shared(t, z).control, torch.cat(expected, 1))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_indexed_one_tells_agents_apart(problem):
    many = problem(3)
    z = many.sample_initial_states(1, generator(1))[:, : many.state_dim // 3].repeat(1, 3)
    for network, alike in ((SharedValueNetwork, True), (IndexedValueNetwork, False)):
        first, *others = policy_of(many, network)(0.0, z).control.chunk(3, dim=1)
        assert all(torch.allclose(first, other) == alike for other in others)


def test_an_indexed_one_sees_states_in_the_problems_units():
    problem = Bicycle(2)
    policy = policy_of(problem, IndexedValueNetwork)
    units = network_defaults(problem).agent_units
    assert policy.units.tolist() == pytest.approx(list(units))
    with torch.no_grad():
        z = problem.sample_initial_states(2, generator(1))
        seen = []
        policy.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        policy(0.25, z)
    rows = z.view(4, 4) / torch.tensor(units)
    expected = torch.cat((rows, policy.indices.repeat(2, 1), torch.full((4, 1), 0.25)), 1)
    torch.testing.assert_close(seen[0], expected)


def test_controls_are_admissible_whatever_the_network_says():
    bicycle = Bicycle(3, dtype=torch.float64)
    consumption = Consumption(4, dtype=torch.float64)
    for problem in (bicycle, consumption):
        policy = DirectPolicy(problem, generator=generator())
        with torch.no_grad():
            for parameter in policy.network[-1].parameters():
                parameter.mul_(1e6)
        z = problem.sample_initial_states(8, generator(1))
        u = policy(0.3, z).control.detach()
        assert u.isfinite().all()
        if problem is bicycle:
            steering, acceleration = u[:, ::2], u[:, 1::2]
            assert steering.abs().max() == problem.max_steering
            assert acceleration.abs().max() > 100.0  # not bounded
        else:
            excess = u - z[:, 1:]
            # Rounding in c = h + excess, with a habit near 0.01 and an excess of up to 100.
            assert excess.min() == pytest.approx(problem.min_excess, rel=1e-9)
            assert excess.max() == pytest.approx(problem.max_excess, rel=1e-9)


def test_goods_are_not_identical_agents():
    with pytest.raises(ValueError, match="no identical agents"):
        DirectPolicy(Consumption(2), network=SharedValueNetwork)
