"""Diagnostics against dense float64 computations on small cases."""

from __future__ import annotations

import math

import pytest
import torch

from baselines import DenseLU, Implicit, build_policy
from bench.diagnostics import (
    angle,
    contraction_rate,
    curvature_bounds,
    map_parameter_singular_values,
    minibatch_gradients,
    policy_gradient,
    relative_variance,
    watching,
)
from bench.probes.trace import along_rollout, gradients
from jfbcore.jfb import JFB
from jfbcore.maps import MAPS
from jfbcore.problems import PROBLEMS
from jfbcore.rollout import rollout
from jfbcore.solvers import Newton

F64 = torch.float64
#: exact for these sizes but for the square root of A^T A's rounding
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_policy(name: str, map_name: str = "scaled", n_agents: int = 2):
    problem = PROBLEMS[name](n_agents=n_agents, n_steps=5, dtype=F64)
    policy = build_policy(
        problem,
        JFB(),
        fixed_point_map=MAPS[map_name],
        solver=Newton(tolerance=1e-12 * problem.gradient_scale),
        width=8,
        generator=generator(),
    )
    with torch.no_grad():
        random = generator(1)
        for parameter in policy.parameters():
            scale = 0.1 * parameter.abs().mean()
            parameter.add_(scale * torch.randn(parameter.shape, generator=random, dtype=F64))
    return policy


def decide(policy):
    z = policy.problem.sample_initial_states(3, generator(2))
    decision = policy(0.3, z)
    return z, decision.hamiltonian, decision.control.detach()


def dense(function, u):
    """Jacobian per sample, (batch, m, m), by autograd on the whole batch."""
    whole = torch.autograd.functional.jacobian(function, u)
    return torch.stack([whole[i, :, i] for i in range(u.shape[0])])


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("map_name", MAPS)
def test_contraction_rate_is_the_dense_spectral_norm(name, map_name):
    policy = make_policy(name, map_name)
    _, hamiltonian, u = decide(policy)
    bound = policy.fixed_point_map.bind(hamiltonian)
    jacobian = dense(lambda v: bound(v), u)
    expected = torch.linalg.matrix_norm(jacobian, ord=2)
    torch.testing.assert_close(
        contraction_rate(bound, u, generator=generator(7)), expected, **CLOSE
    )


def test_contraction_rate_of_the_quadrotor_in_closed_form():
    """s/(1 + s) with s = |u|^2/2N at the fixed point of the scaled map."""
    policy = make_policy("quadrotor")
    _, hamiltonian, u = decide(policy)
    s = u.square().sum(1) / (2 * policy.problem.n_agents)
    rate = contraction_rate(policy.fixed_point_map.bind(hamiltonian), u, generator=generator(7))
    torch.testing.assert_close(rate, s / (1.0 + s), **CLOSE)


@pytest.mark.parametrize("name", PROBLEMS)
def test_curvature_bounds_are_the_dense_eigenvalues(name):
    policy = make_policy(name)
    _, hamiltonian, u = decide(policy)
    eigenvalues = torch.linalg.eigvalsh(-dense(hamiltonian.grad, u))
    smallest, largest = curvature_bounds(hamiltonian, u, generator=generator(7))
    # Differences of norms of shifted operators: absolute accuracy, relative to the largest.
    scale = eigenvalues.abs().max().item()
    torch.testing.assert_close(smallest, eigenvalues[:, 0], rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(largest, eigenvalues[:, -1], rtol=0, atol=1e-6 * scale)


def test_angle():
    a = torch.tensor([1.0, 0.0], dtype=F64)
    for degrees in (0.0, 1e-6, 30.0, 90.0, 179.999, 180.0):
        b = 7.0 * torch.tensor(
            [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=F64
        )
        # 1e-12 degrees: rounding of cos and sin themselves
        assert angle(a, b) == pytest.approx(degrees, abs=1e-12, rel=1e-9)
    assert math.isnan(angle(a, torch.zeros(2, dtype=F64)))


def test_relative_variance_by_hand():
    gradients = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])]
    assert relative_variance(gradients) == pytest.approx(2.0 / 4.0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_policy_gradient_is_backward_and_leaves_the_policy_alone(name):
    policy = make_policy(name)
    x = policy.problem.sample_initial_states(3, generator(4))
    exact = policy_gradient(policy, x, Implicit(DenseLU()))
    assert policy.gradient == JFB()
    rollout(policy.with_gradient(Implicit(DenseLU())), x).cost.mean().backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    torch.testing.assert_close(exact, torch.cat([p.flatten() for p in parts]))


@pytest.mark.parametrize("estimator", [None, Implicit(DenseLU())])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_of_minibatches_are_those_of_each_alone(name, estimator):
    """In float64 and to a tight inner tolerance: that the solves stop together hardly matters."""
    policy = make_policy(name)
    x = policy.problem.sample_initial_states(5, generator(4))
    found = minibatch_gradients(policy, x, 2, estimator)
    assert len(found) == 3
    for gradient, chunk in zip(found, x.split(2), strict=True):
        torch.testing.assert_close(
            gradient, policy_gradient(policy, chunk, estimator), rtol=1e-7, atol=1e-9
        )


def measure(policy, states, size: int) -> dict[str, float]:
    """A row of a trace."""
    return gradients(policy, Implicit(DenseLU()), states, size) | along_rollout(policy, states)


@pytest.mark.parametrize("name", PROBLEMS)
def test_trace_agrees_with_dense_quantities(name):
    policy = make_policy(name)
    states = policy.problem.sample_initial_states(4, generator(5))
    row = measure(policy, states, 2)
    a = policy_gradient(policy, states)
    b = policy_gradient(policy, states, Implicit(DenseLU()))
    cosine = (a @ b / (a.norm() * b.norm())).clamp(-1.0, 1.0)
    # acos loses half the digits near zero: compare cosines instead.
    found = math.cos(math.radians(row["angle_expectation"]))
    assert found == pytest.approx(cosine.item(), abs=1e-9)
    assert row["true_gradient_norm"] == pytest.approx(b.norm().item(), rel=1e-9)
    assert row["cost"] == pytest.approx(rollout(policy, states).cost.mean().item(), rel=1e-9)
    assert row["rate_max"] < 1.0


def dense_policy_gradient(policy, states, alpha: float | None) -> torch.Tensor:
    """The rollout's gradient with du*/dx = A d(grad H)/dx assembled densely by autograd.

    A = alpha for one application of the plain map, the inverse of -H_uu for the true one (None).
    Shares nothing with the estimators, the maps, the Hamiltonians or the network's sweep: grad
    phi is autograd of phi, grad H autograd of -<p, f> - L, u* a dense Newton iteration.
    """
    problem, network = policy.problem, policy.value_network
    h, z = problem.time_step, states
    cost = torch.zeros_like(states[:, 0])
    for i in range(problem.n_steps):
        t = i * h
        z = z if z.requires_grad else z.requires_grad_()
        (p,) = torch.autograd.grad(network(t, z).sum(), z, create_graph=True)

        def slope(u, t=t, z=z, p=p):
            value = -(p * problem.dynamics(t, z, u)).sum(1) - problem.running_cost(t, z, u)
            return torch.autograd.grad(value.sum(), u, create_graph=True)[0]

        u = problem.initial_control(t, z).detach()
        for _ in range(30):
            u = u.requires_grad_()
            gradient = slope(u)
            rows = [
                torch.autograd.grad(gradient[:, k].sum(), u, retain_graph=True)[0]
                for k in range(u.shape[1])
            ]
            hessian = torch.stack(rows, 1)
            u = u.detach() - torch.linalg.solve(hessian, gradient.detach().unsqueeze(-1))[..., 0]
        attached = slope(u.requires_grad_())
        gain = -torch.linalg.inv(hessian) if alpha is None else alpha * torch.eye(u.shape[1])
        # grad H is zero here: only its derivative enters.
        u = u.detach() + (gain.to(F64) @ attached.unsqueeze(-1))[..., 0]
        cost = cost + h * problem.running_cost(t, z, u)
        z = z + h * problem.dynamics(t, z, u)
    total = (cost + problem.terminal_cost(z)).mean()
    found = torch.autograd.grad(total, list(policy.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("name", PROBLEMS)
def test_angle_and_length_agree_with_dense_gradients(name):
    """The trace's angle between JFB and the true gradient, to 1e-6 degrees and relatively."""
    policy = make_policy(name, "plain")
    states = policy.problem.sample_initial_states(4, generator(5))
    row = measure(policy, states, 4)
    z = states[:1]
    p = policy.value_network.costate(0.0, z)
    alpha = policy.problem.hamiltonian(0.0, z, p).plain_step_size
    jfb = dense_policy_gradient(policy, states, alpha)
    true = dense_policy_gradient(policy, states, None)
    a, b = jfb / jfb.norm(), true / true.norm()
    expected = math.degrees(2.0 * math.asin((a - b).norm().item() / 2.0))
    assert expected > 1e-3  # the two differ: this is not zero against zero
    assert row["angle_max"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert row["angle_expectation"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert row["norm_ratio"] == pytest.approx((jfb.norm() / true.norm()).item(), rel=1e-6)
    assert row["true_gradient_norm"] == pytest.approx(true.norm().item(), rel=1e-6)


def test_a_trace_that_looks_at_some_time_steps_only():
    policy = make_policy("quadrotor")
    states = policy.problem.sample_initial_states(2, generator(5))
    whole = along_rollout(policy, states)
    first = along_rollout(policy, states, every=5)
    # Five time steps: only the first is left, and the rest of the row does not notice.
    bound = policy.fixed_point_map.bind(policy(0.0, states).hamiltonian)
    control = policy(0.0, states).control.detach()
    expected = contraction_rate(bound, control, generator=generator(7)).max().item()
    assert first["rate_max"] == pytest.approx(expected, rel=1e-9)
    assert first["rate_max"] <= whole["rate_max"]
    for name in ("cost", "residual_max", "parameter_singular_max"):
        assert first[name] == whole[name]
    assert 0.0 < whole["parameter_singular_min"] <= whole["parameter_singular_max"]


def test_watching_sees_every_decision_of_a_rollout_and_ends():
    policy = make_policy("bicycle")
    states = policy.problem.sample_initial_states(3, generator())
    seen = []

    def look(t, z, decision):
        seen.append((t, z, decision.control))

    with watching(policy, look):
        found = rollout(policy, states, n_steps=4)
    h = policy.problem.t_final / 4
    assert [t for t, _, _ in seen] == pytest.approx([0.0, h, 2 * h, 3 * h])
    assert torch.equal(seen[0][1], states)
    # An Euler step from the last state and control that were seen ends where the rollout did.
    t, z, u = seen[-1]
    torch.testing.assert_close(z + h * policy.problem.dynamics(t, z, u), found.final_state)

    def refuse(*_):
        raise RuntimeError("made up")

    with pytest.raises(RuntimeError, match="made up"), watching(policy, refuse):
        rollout(policy, states, n_steps=4)
    rollout(policy, states, n_steps=4)
    assert len(seen) == 4


def test_map_parameter_singular_values_against_the_full_jacobian():
    policy = make_policy("quadrotor", n_agents=1)
    z = policy.problem.sample_initial_states(1, generator(6))
    u = policy(0.3, z).control.detach()
    parameters = list(policy.parameters())

    def image() -> torch.Tensor:
        p = policy.value_network.costate(0.3, z)
        return policy.fixed_point_map.bind(policy.problem.hamiltonian(0.3, z, p))(u)[0]

    rows = []
    for k in range(u.shape[1]):
        found = torch.autograd.grad(image()[k], parameters, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    matrix = torch.stack(rows)
    eigenvalues = torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0).sqrt()
    smallest, largest = map_parameter_singular_values(policy, 0.3, z)
    # The Gram matrix squares the condition number: half of float64's digits.
    assert largest == pytest.approx(eigenvalues[-1].item(), rel=1e-7)
    assert smallest == pytest.approx(eigenvalues[0].item(), rel=1e-5, abs=1e-7 * largest)
