"""The network that agents share, against the dense one and finite differences."""

from __future__ import annotations

import pytest
import torch

from jfbcore.extras.gate import Gate
from jfbcore.extras.network_defaults import NetworkScaling, network_defaults
from jfbcore.extras.places import Places
from jfbcore.extras.shared_network import (
    AssignedValueNetwork,
    BranchedValueNetwork,
    IndexedValueNetwork,
    SharedValueNetwork,
)
from jfbcore.jfb import JFB
from jfbcore.maps import ScaledMap
from jfbcore.policy import HamiltonianPolicy
from jfbcore.problems import Bicycle, Consumption, Quadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import Picard
from jfbcore.value_network import ValueNetwork
from tests.problems.double_integrator import DoubleIntegrator

SWARMS = {
    "quadrotor": lambda n, **k: Quadrotor(n, dtype=torch.float64, n_steps=5, **k),
    "bicycle": lambda n, **k: Bicycle(n, dtype=torch.float64, n_steps=5, **k),
}


every_network = pytest.mark.parametrize(
    "network_class",
    [SharedValueNetwork, IndexedValueNetwork, AssignedValueNetwork, BranchedValueNetwork],
)


def network_of(problem, network_class=SharedValueNetwork) -> SharedValueNetwork:
    return network_class.for_problem(problem, generator=torch.Generator().manual_seed(0))


def policy_of(problem) -> HamiltonianPolicy:
    return HamiltonianPolicy(
        problem,
        network_of(problem),
        fixed_point_map=ScaledMap(),
        solver=Picard(tolerance=1e-11),
        gradient=JFB(),
    )


@pytest.mark.parametrize("kind", SWARMS)
def test_one_agent_is_its_own_network(kind):
    problem = SWARMS[kind](1)
    network = network_of(problem)
    z = problem.sample_initial_states(3, torch.Generator().manual_seed(1))
    assert torch.equal(network.costate(0.3, z), network.agent_network.costate(0.3, z))
    assert torch.equal(network(0.3, z), network.agent_network(0.3, z))


@pytest.mark.parametrize("time", [0.3, "per sample"])
@every_network
@pytest.mark.parametrize("kind", SWARMS)
def test_costate_and_time_derivative_are_those_of_phi(kind, network_class, time):
    problem = SWARMS[kind](3)
    network = network_of(problem, network_class)
    z = problem.sample_initial_states(4, torch.Generator().manual_seed(1)).requires_grad_()
    t = torch.linspace(0.1, 0.9, 4, dtype=z.dtype) if time == "per sample" else torch.tensor(time)
    t = t.to(z.dtype).requires_grad_()
    phi, p, phi_t = network.value_and_gradient(t, z)
    by_z, by_t = torch.autograd.grad(phi.sum(), (z, t))
    # float64 and one sweep: rounding alone.
    torch.testing.assert_close(p, by_z, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(network.costate(t, z), by_z, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(phi_t.sum(), by_t.sum(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", SWARMS)
def test_relabelling_agents_relabels_controls(kind):
    problem = SWARMS[kind](4)
    policy = policy_of(problem)
    z = problem.sample_initial_states(3, torch.Generator().manual_seed(1))
    order = torch.tensor([2, 0, 3, 1])

    def permuted(x):
        return x.view(3, 4, -1)[:, order].reshape(3, -1)

    torch.testing.assert_close(
        policy(0.2, permuted(z)).control, permuted(policy(0.2, z).control), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("kind", SWARMS)
def test_a_swarm_of_equals_without_interaction_costs_what_its_share_says(kind):
    """N agents in the same state, uncoupled but through the mean of |u|^2: the quadrotor's cost
    is one agent's, the bicycle's N times that, and so are the gradients."""
    one, many = SWARMS[kind](1), SWARMS[kind](3, interaction_weight=0.0)
    x = one.sample_initial_states(2, torch.Generator().manual_seed(1))
    costs, gradients = [], []
    for problem, states in ((one, x), (many, x.repeat(1, 3))):
        policy = policy_of(problem)
        cost = rollout(policy, states).cost.mean()
        cost.backward()
        costs.append(cost.item())
        found = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    factor = network_defaults(many).agent_share * 3
    assert costs[1] == pytest.approx(factor * costs[0], rel=1e-9)
    # The swarm's map has other eigenvalues than one agent's only through its size.
    torch.testing.assert_close(gradients[1], factor * gradients[0], rtol=1e-6, atol=1e-9)


@every_network
def test_goods_are_not_agents(network_class):
    with pytest.raises(ValueError, match="no identical agents"):
        network_class.for_problem(Consumption(3))


@pytest.mark.parametrize("kind", SWARMS)
def test_an_index_tells_agents_in_the_same_state_apart(kind):
    """Agents keep their costates when they are relabelled with their indices, not without."""
    problem = SWARMS[kind](4)
    network = network_of(problem, IndexedValueNetwork)
    z = problem.sample_initial_states(3, torch.Generator().manual_seed(1))
    order = torch.tensor([2, 0, 3, 1])

    def permuted(x):
        return x.view(3, 4, -1)[:, order].reshape(3, -1)

    p = network.costate(0.2, z)
    without = network.costate(0.2, permuted(z))
    network.indices = network.indices[order]
    torch.testing.assert_close(network.costate(0.2, permuted(z)), permuted(p))
    assert not torch.allclose(without, permuted(p), rtol=1e-3)


def test_an_indexed_network_is_a_plain_one_of_state_in_units_and_index():
    problem = SWARMS["bicycle"](3)
    network = network_of(problem, IndexedValueNetwork)
    z = problem.sample_initial_states(2, torch.Generator().manual_seed(1))
    plain = ValueNetwork(
        4 + network.INDEX_DIM, network_defaults(problem).width, dtype=torch.float64
    )
    plain.load_state_dict(network.agent_network.state_dict())
    for i in range(3):
        state = z[:, 4 * i : 4 * i + 4].clone()
        state[:, 2] *= problem.wheelbase
        p = plain.costate(0.3, torch.cat((state, network.indices[i].expand(2, -1)), 1))[:, :4]
        p[:, 2] *= problem.wheelbase
        torch.testing.assert_close(network.costate(0.3, z)[:, 4 * i : 4 * i + 4], p)


def test_saved_indices_come_back():
    problem = SWARMS["bicycle"](3)
    network = network_of(problem, IndexedValueNetwork)
    other = IndexedValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(9))
    other.load_state_dict(network.state_dict())
    z = problem.sample_initial_states(2, torch.Generator().manual_seed(1))
    assert torch.equal(other.costate(0.3, z), network.costate(0.3, z))


def test_one_index_for_each_agent():
    with pytest.raises(ValueError, match=r"`indices` must be \(3, 8\).*got \(2, 5\)"):
        IndexedValueNetwork(ValueNetwork(9, 8), 3, 1.0, torch.zeros(2, 5))


def test_a_gate_for_the_network_with_branches_alone():
    agent, indices, gate = ValueNetwork(13, 8), torch.zeros(3, 8), Gate(12)
    with pytest.raises(ValueError, match="`gate` must be None, got Gate"):
        IndexedValueNetwork(agent, 3, 1.0, indices, gate)
    with pytest.raises(ValueError, match="`gate` must be a Gate, got None"):
        BranchedValueNetwork(agent, 3, 1.0, indices)


def test_places_for_the_network_that_assigns_alone():
    agent, places = ValueNetwork(8, 8), Places(torch.zeros(3, 4), torch.ones(4))
    with pytest.raises(ValueError, match="`places` must be None, got Places"):
        IndexedValueNetwork(agent, 3, 1.0, torch.zeros(3, 8), places=places)
    with pytest.raises(ValueError, match="`places` must be a Places, got None"):
        AssignedValueNetwork(agent, 3, 1.0, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"`indices` must be \(3, 4\).*got \(3, 8\)"):
        AssignedValueNetwork(agent, 3, 1.0, torch.zeros(3, 8), places=places)


def test_a_branch_is_what_the_gate_says_of_time_state_and_index():
    """Against one plain network that is told a sign, the gate's, for each agent and sample."""
    problem = SWARMS["quadrotor"](3)
    network = network_of(problem, BranchedValueNetwork)
    assert network.gate is not None
    z = problem.sample_initial_states(40, torch.Generator().manual_seed(1))
    t = torch.linspace(0.0, 4.0, 40, dtype=z.dtype)
    with torch.no_grad():
        network.gate.layers[-1].bias.zero_()
    p, agents = network.costate(t, z).view(40, 3, 12), z.view(40, 3, 12)
    shares = []
    for i in range(3):
        second = network.gate(t[:, None], agents[:, i], network.indices[i].expand(40, -1)) > 0
        number = torch.full((40,), i)
        first, other = (
            network.agents_costate(t, agents[:, i], number, torch.full((40,), kind))
            for kind in (0, 1)
        )
        assert not torch.allclose(first, other, rtol=1e-3)
        expected = network.share * torch.where(second[:, None], other, first)
        torch.testing.assert_close(p[:, i], expected)
        shares.append(second.double().mean().item())
    assert 0.0 < sum(shares) / 3 < 1.0


def test_one_unit_for_each_state():
    with pytest.raises(ValueError, match=r"`scaling\.state` must have 4 units.*got 3"):
        ValueNetwork(4, 8, scaling=NetworkScaling(state=(1.0, 1.0, 20.0)))


@every_network
def test_keywords_replace_the_defaults_of_a_problem(network_class):
    problem = DoubleIntegrator(3)
    with pytest.raises(ValueError, match="no identical agents"):
        network_class.for_problem(problem)
    network = network_class.for_problem(problem, share=0.5, width=7, units=(1.0, 1.0, 4.0, 4.0))
    assert (network.share, network.agent_network.width) == (0.5, 7)
    z = problem.sample_initial_states(2, torch.Generator().manual_seed(0))
    assert network.costate(0.0, z).shape == z.shape
