"""Agents that are assigned to places, against every other way to number them."""

from __future__ import annotations

import itertools

import pytest
import torch

from baselines import METHODS, build_policy
from jfbcore.extras.places import Places, places_in
from jfbcore.extras.shared_network import AssignedValueNetwork, IndexedValueNetwork
from jfbcore.maps import ScaledMap
from jfbcore.problems import Bicycle, Quadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import Picard
from jfbcore.value_network import ValueNetwork

F64 = torch.float64


def swarm(problem, seed=1, count=6):
    return problem.sample_initial_states(count, torch.Generator().manual_seed(seed))


def renumbered(states, order):
    """`states` (batch, n) with agent `order[i]` in the place of agent i."""
    agents = states.view(len(states), len(order), -1)
    return agents[:, list(order)].reshape(states.shape)


def policy_of(problem, network, gradient="jfb"):
    return build_policy(
        problem, METHODS[gradient], fixed_point_map=ScaledMap(), solver=Picard(tolerance=1e-10),
        network=network, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.mark.parametrize("problem", [Bicycle(5, dtype=F64), Quadrotor(4, dtype=F64)])
def test_no_other_numbering_is_closer(problem):
    places, states = Places.of(problem), swarm(problem)

    def distance(numbered):
        agents = numbered.view(len(numbered), problem.n_agents, -1)
        return ((agents - places.states) / places.spread).square().sum((1, 2))

    orders = itertools.permutations(range(problem.n_agents))
    least = torch.stack([distance(renumbered(states, order)) for order in orders]).amin(0)
    torch.testing.assert_close(distance(places(states)), least)


def test_a_numbering_says_nothing():
    problem = Bicycle(5, dtype=F64)
    places, states = Places.of(problem), swarm(problem)
    assigned = places(states)
    assert torch.equal(places(renumbered(states, (3, 0, 4, 1, 2))), assigned)
    assert torch.equal(places(assigned), assigned)
    assert torch.equal(places(places.states.view(1, -1)), places.states.view(1, -1))


def test_places_are_the_mean_of_assigned_swarms():
    """Of fresh ones too: nearer by far than the agents of a swarm are as they are numbered."""
    problem = Bicycle(20, dtype=F64)
    places, states = Places.of(problem), swarm(problem, count=400)
    mean = places(states).view(400, 20, 4).mean(0)
    as_numbered = (states.view(400, 20, 4).mean(0) - places.states).square().mean().sqrt()
    assert (mean - places.states).square().mean().sqrt() < 0.1 * as_numbered
    assert torch.equal(Places.of(problem).states, places.states)
    # Heading and speed are the same for all: no distance, and nothing to tell.
    assert places.spread[2:].tolist() == [1.0, 1.0]
    assert not places.indices[:, 2:].any()
    torch.testing.assert_close(
        places.spread[:2], torch.full((2,), 0.1, dtype=F64), rtol=0.05, atol=0
    )


@pytest.mark.parametrize("gradient", ["jfb", "direct", "costate-network"])
def test_a_policy_costs_the_same_however_agents_are_numbered(gradient):
    problem = Bicycle(4, dtype=F64, n_steps=8)
    states = swarm(problem)
    other = renumbered(states, (2, 3, 1, 0))
    with torch.no_grad():
        for network, alike in ((AssignedValueNetwork, True), (IndexedValueNetwork, False)):
            policy = policy_of(problem, network, gradient)
            for parameter in policy.parameters():
                parameter.mul_(2.0)  # what is drawn steers all agents nearly alike
            costs, others = (rollout(policy, z).cost for z in (states, other))
            assert torch.allclose(costs, others, rtol=1e-12) == alike


def test_a_recorded_rollout_starts_from_the_numbering_of_its_policy():
    problem = Bicycle(4, n_steps=3)
    policy, states = policy_of(problem, AssignedValueNetwork), swarm(problem)
    flown = rollout(policy, states, record=True)
    places = places_in(policy)
    assert places is not None
    assert torch.equal(flown.states[0], places(states))
    assert not torch.equal(flown.states[0], states)


def test_a_dense_network_has_no_places():
    policy, states = policy_of(Bicycle(2), ValueNetwork), swarm(Bicycle(2))
    assert places_in(policy) is None
    assert policy.assigned(states) is states
