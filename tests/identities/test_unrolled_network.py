"""The network inside the unrolled map: the same mathematics, at the price it is there to show."""

from __future__ import annotations

import pytest
import torch

from baselines import Unrolled, UnrolledNetworkPolicy, build_policy
from bench.memory import SavedTensorCounter
from jfbcore.maps import MAPS
from jfbcore.problems import PROBLEMS
from jfbcore.rollout import rollout
from jfbcore.solvers import Anderson, ClosedForm, Newton, Picard, Solver
from jfbcore.value_network import ValueNetwork

F64 = torch.float64


def make(name: str, solver: Solver, map_name: str = "scaled"):
    problem = PROBLEMS[name](n_agents=2, n_steps=3, t_final=0.3, dtype=F64)
    policy = build_policy(
        problem,
        Unrolled(),
        fixed_point_map=MAPS[map_name],
        solver=solver,
        width=8,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * parameter.abs().mean())
    return policy, problem.sample_initial_states(3, torch.Generator().manual_seed(1))


def gradients(policy, x):
    result = rollout(policy, x)
    cost = result.cost.mean()
    found = torch.autograd.grad(cost, list(policy.parameters()), materialize_grads=True)
    return cost, torch.cat([g.flatten() for g in found]), result


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("map_name", ["plain", "scaled"])
@pytest.mark.parametrize("iterations", [1, 7])
def test_the_gradient_is_that_of_unrolled(name, map_name, iterations):
    policy, x = make(name, Picard(tolerance=None, max_iterations=iterations), map_name)
    cost, gradient, plain = gradients(policy, x)
    again, other, inside = gradients(UnrolledNetworkPolicy(policy), x)
    assert gradient.norm() > 0
    torch.testing.assert_close(again, cost, rtol=1e-12, atol=0)
    # Sums over iterations in another order: rounding relative to the largest term.
    torch.testing.assert_close(other, gradient, rtol=0, atol=1e-12 * gradient.abs().max().item())
    assert inside.inner.iterations == plain.inner.iterations == [iterations] * 3
    torch.testing.assert_close(inside.final_state, plain.final_state, rtol=1e-12, atol=1e-12)


def test_the_network_is_evaluated_in_every_iteration(monkeypatch):
    calls: list[int] = []
    costate = ValueNetwork.costate

    def counted(self, t, z):
        calls.append(z.shape[0])
        return costate(self, t, z)

    monkeypatch.setattr(ValueNetwork, "costate", counted)
    policy, x = make("quadrotor", Picard(tolerance=None, max_iterations=5))
    rollout(policy, x)
    assert len(calls) == 3
    calls.clear()
    rollout(UnrolledNetworkPolicy(policy), x)
    assert len(calls) == 3 * 5


def test_saved_bytes_per_iteration_hold_the_network():
    saved = {}
    for iterations in (4, 8):
        policy, x = make("quadrotor", Picard(tolerance=None, max_iterations=iterations))
        for name, one in (("outside", policy), ("inside", UnrolledNetworkPolicy(policy))):
            with SavedTensorCounter(exclude=[*policy.parameters(), x]) as counter:
                rollout(one, x)
            saved[name, iterations] = counter.bytes
    slope = {name: (saved[name, 8] - saved[name, 4]) // 4 for name in ("outside", "inside")}
    # At least tanh(a) of three layers and the inputs of two: 5 x width 8, for 3 samples at the
    # 3 time steps, in 8 bytes.
    assert slope["inside"] >= slope["outside"] + 5 * 8 * 3 * 3 * 8


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    "solver", [Picard(tolerance=1e-9), Anderson(tolerance=1e-9), Newton(tolerance=1e-9)], ids=repr
)
def test_any_solver_and_a_stopping_test(name, solver):
    policy, x = make(name, solver)
    cost, gradient, plain = gradients(policy, x)
    again, other, inside = gradients(UnrolledNetworkPolicy(policy), x)
    torch.testing.assert_close(again, cost, rtol=1e-12, atol=0)
    # Anderson's weights divide small differences: rounding of 1e-16 over a residual of 1e-9.
    torch.testing.assert_close(other, gradient, rtol=0, atol=1e-7 * gradient.abs().max().item())
    assert inside.inner.iterations == plain.inner.iterations


def test_a_solver_it_cannot_track_is_refused():
    policy, _ = make("quadrotor", Picard(tolerance=None))
    policy.solver = ClosedForm()
    with pytest.raises(ValueError, match="ClosedForm has none"):
        UnrolledNetworkPolicy(policy)
