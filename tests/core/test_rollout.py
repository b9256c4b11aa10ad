"""Rollouts against an Euler loop on Python floats that is given the same controls."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from baselines import METHODS, build_policy
from bench.memory import LiveTensorTracker
from jfbcore.jfb import JFB
from jfbcore.maps import PlainMap, ScaledMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems import PROBLEMS, Bicycle, Problem, Quadrotor
from jfbcore.rollout import hjb_residual, rollout
from jfbcore.solvers import Newton, Picard
from jfbcore.value_network import ValueNetwork
from tests.identities.test_identities import make_costates_generic
from tests.problems import scalar

F64 = torch.float64
BATCH = 3
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, *, n_agents: int = 2, n_steps: int = 6, **settings) -> Policy:
    problem = PROBLEMS[name](n_agents=n_agents, n_steps=n_steps, t_final=0.6, dtype=F64)
    return policy_for(problem, **settings)


def policy_for(
    problem: Problem, *, gradient=METHODS["jfb"], solver=None, fixed_point_map=None
) -> Policy:
    policy = build_policy(
        problem,
        gradient,
        fixed_point_map=fixed_point_map or ScaledMap(),
        solver=solver or Newton(tolerance=1e-12 * problem.gradient_scale),
        width=6,
        generator=generator(),
    )
    make_costates_generic(policy)
    return policy


class Recording:
    """Keeps what a policy was asked and what it decided."""

    def __init__(self, policy: Policy) -> None:
        self.times: list[float] = []
        self.states: list[Tensor] = []
        self.starts: list[Tensor | None] = []
        self.decisions: list[Decision] = []
        self._hook = policy.register_forward_hook(self._record)

    def _record(self, module, inputs, decision: Decision) -> None:
        t, z, start = inputs
        self.times.append(t)
        self.states.append(z.detach())
        self.starts.append(start)
        self.decisions.append(decision)


@every_problem
@pytest.mark.parametrize("gradient", ["jfb", "direct"])
def test_costs_against_a_loop_on_floats(name, gradient):
    policy = make(name, n_agents=3, gradient=METHODS[gradient])
    problem, h = policy.problem, 0.1
    x = problem.sample_initial_states(BATCH, generator())
    record = Recording(policy)
    result = rollout(policy, x)
    prefix = name.replace("-", "_")
    dynamics = getattr(scalar, f"{prefix}_dynamics")
    running_cost = getattr(scalar, f"{prefix}_running_cost")
    terminal_cost = getattr(scalar, f"{prefix}_terminal_cost")
    assert record.times == pytest.approx([h * i for i in range(6)])
    for sample in range(BATCH):
        z, running = x[sample].tolist(), 0.0
        for i, decision in enumerate(record.decisions):
            assert record.states[i][sample].tolist() == pytest.approx(z, rel=1e-11, abs=1e-12)
            u = decision.control[sample].tolist()
            cost = running_cost(h * i, z, u) if name == "consumption" else running_cost(z, u)
            running += h * cost
            z = [a + h * b for a, b in zip(z, dynamics(z, u), strict=True)]
        # Six steps of the same arithmetic in another order.
        assert result.running_cost[sample].item() == pytest.approx(running, rel=1e-11)
        assert result.terminal_cost[sample].item() == pytest.approx(terminal_cost(z), rel=1e-11)
        assert result.final_state[sample].tolist() == pytest.approx(z, rel=1e-11, abs=1e-12)
    torch.testing.assert_close(result.cost, result.running_cost + result.terminal_cost)
    assert result.hjb_penalty is None
    assert result.terminal_penalty is None


@every_problem
def test_bad_arguments_are_named(name):
    policy = make(name)
    x = policy.problem.sample_initial_states(BATCH, generator())
    for n_steps in (0, -1):
        with pytest.raises(ValueError, match=rf"`n_steps` must be >= 1, got {n_steps}"):
            rollout(policy, x, n_steps=n_steps)
    with pytest.raises(ValueError, match=r"`initial_states` must have shape \(batch, "):
        rollout(policy, x[:, :-1])


@every_problem
def test_gradient_mode_changes_no_control(name):
    """Tracked or not, the same controls to the solver's tolerance: here 1e-12."""
    policy = make(name)
    x = policy.problem.sample_initial_states(BATCH, generator())
    tracked = rollout(policy, x)
    with torch.no_grad():
        plain = rollout(policy, x)
    assert tracked.cost.requires_grad
    assert not plain.cost.requires_grad
    torch.testing.assert_close(tracked.cost, plain.cost, rtol=1e-9, atol=1e-10)


@every_problem
def test_samples_are_independent(name):
    policy = make(name)
    x = policy.problem.sample_initial_states(BATCH, generator())
    together = rollout(policy, x)
    for i in range(BATCH):
        alone = rollout(policy, x[i : i + 1])
        # A batch iterates until its slowest sample is done: tolerance 1e-12 either way.
        torch.testing.assert_close(alone.cost[0], together.cost[i], rtol=1e-9, atol=1e-10)


@every_problem
def test_statistics_are_those_of_the_solves(name):
    policy = make(name, solver=Picard(tolerance=1e-3, max_iterations=7))
    x = policy.problem.sample_initial_states(BATCH, generator())
    record = Recording(policy)
    summary = rollout(policy, x).inner.summary()
    solutions = [decision.solution for decision in record.decisions]
    counts = [s.iterations for s in solutions]
    residuals = torch.stack([s.residual for s in solutions])
    assert summary["iterations"] == {"mean": sum(counts) / 6, "max": max(counts)}
    assert summary["residual"]["mean"] == pytest.approx(residuals.mean().item())
    assert summary["residual"]["max"] == residuals.max().item()


# ---------------------------------------------------------------------------------------------
# warm start


@every_problem
@pytest.mark.parametrize("map_name", ["plain", "scaled"])
def test_warm_start_finds_the_same_fixed_points_sooner(name, map_name):
    # Many short steps, so that one step's control is close to the next one's; controls well
    # inside the region where plain ascent contracts.
    problem = PROBLEMS[name](n_agents=2, n_steps=12, t_final=0.12, dtype=F64)
    solver = Picard(tolerance=1e-10 * problem.gradient_scale, max_iterations=5000)
    recipe = PlainMap() if map_name == "plain" else ScaledMap()
    policy = policy_for(problem, solver=solver, fixed_point_map=recipe)
    x = problem.sample_initial_states(BATCH, generator())
    cold = rollout(policy, x)
    record = Recording(policy)
    warm = rollout(policy, x, warm_start=True)
    # Each control is within 1e-10 / curvature of the same fixed point.
    torch.testing.assert_close(warm.cost, cold.cost, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(warm.final_state, cold.final_state, rtol=1e-8, atol=1e-9)
    assert record.starts[0] is None
    for start, before in zip(record.starts[1:], record.decisions, strict=False):
        assert torch.equal(start, before.control.detach())
        assert not start.requires_grad
    assert warm.inner.iterations[0] == cold.inner.iterations[0]
    # The scaled map needs so few iterations that there may be none to save.
    assert sum(warm.inner.iterations) <= sum(cold.inner.iterations)
    if map_name == "plain":
        assert sum(warm.inner.iterations) < sum(cold.inner.iterations)
    # and the same gradients: the start carries none
    a, b = (
        torch.autograd.grad(r.cost.mean(), list(policy.parameters()), materialize_grads=True)
        for r in (cold, warm)
    )
    for x_cold, x_warm in zip(a, b, strict=True):
        torch.testing.assert_close(x_cold, x_warm, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------
# HJB penalties


@every_problem
def test_penalties_against_autograd_of_the_value(name):
    """h sum |phi_t + L + <p, f>| and |phi(T, z) - G(z)|, with phi's derivatives by autograd."""
    policy = make(name)
    problem, network, h = policy.problem, policy.value_network, 0.1
    x = problem.sample_initial_states(BATCH, generator())
    record = Recording(policy)
    result = rollout(policy, x, penalties=True)
    expected = torch.zeros(BATCH, dtype=F64)
    for i, decision in enumerate(record.decisions):
        z = record.states[i].clone().requires_grad_()
        t = torch.full((BATCH,), h * i, dtype=F64, requires_grad=True)
        p, phi_t = torch.autograd.grad(network(t, z).sum(), (z, t))
        u = decision.control.detach()
        lagrangian = problem.running_cost(h * i, z, u)
        residual = phi_t + lagrangian + (p * problem.dynamics(h * i, z, u)).sum(1)
        expected = expected + h * residual.detach().abs()
    torch.testing.assert_close(result.hjb_penalty, expected, rtol=1e-10, atol=1e-11)
    misfit = (network(problem.t_final, result.final_state) - result.terminal_cost).abs()
    torch.testing.assert_close(result.terminal_penalty, misfit, rtol=1e-10, atol=1e-11)
    # Penalties change no cost, and they have a gradient.
    plain = rollout(policy, x)
    assert torch.equal(plain.cost, result.cost)
    gradients = torch.autograd.grad(
        result.hjb_penalty.mean() + result.terminal_penalty.mean(), list(policy.parameters()),
        materialize_grads=True,
    )  # fmt: skip
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("problem", "slope"),
    [
        # Without a terminal cost nothing is worth steering for: u = 0 is optimal, and the value
        # is the cost of time alone, L(0) = exp(0) = 1 per second or L(0) = 0.
        (Quadrotor(1, terminal_weight=0.0, n_steps=5, dtype=F64), 1.0),
        (Quadrotor(3, terminal_weight=0.0, interaction_weight=0.0, n_steps=5, dtype=F64), 1.0),
        (Bicycle(3, terminal_weight=0.0, interaction_weight=0.0, n_steps=5, dtype=F64), 0.0),
    ],
    ids=["quadrotor", "quadrotors", "bicycles"],
)
def test_the_true_value_function_has_no_penalty(problem, slope):
    """phi(t, z) = slope (T - t) solves the HJB equation exactly."""
    network = ValueNetwork.for_problem(problem, width=1, generator=generator())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.linear_time.fill_(-slope)
        # The constant slope T comes from the last bias: phi at t = 0 is readout * features.
        features = network.value_and_gradient(0.0, torch.zeros(1, problem.state_dim, dtype=F64))
        assert features[0].item() == 0.0
        network.readout.fill_(1.0)
        constant = network(0.0, torch.zeros(1, problem.state_dim, dtype=F64)).item()
        network.readout.fill_(slope * problem.t_final / constant)
    policy = HamiltonianPolicy(
        problem,
        network,
        fixed_point_map=ScaledMap(),
        solver=Newton(tolerance=1e-12),
        gradient=JFB(),
    )
    x = problem.sample_initial_states(BATCH, generator())
    result = rollout(policy, x, penalties=True)
    # Rounding of numbers of order one to five.
    assert result.hjb_penalty.abs().max() < 1e-13
    assert result.terminal_penalty.abs().max() < 1e-13
    value = torch.full((BATCH,), slope * problem.t_final, dtype=F64)
    torch.testing.assert_close(result.cost, value)
    torch.testing.assert_close(network(0.0, x), value)


def test_penalties_need_a_value_network():
    policy = make("quadrotor", gradient=METHODS["direct"])
    x = policy.problem.sample_initial_states(BATCH, generator())
    with pytest.raises(ValueError, match="HJB penalties need a policy with a value network"):
        rollout(policy, x, penalties=True)
    with pytest.raises(ValueError, match="set them to 0"):
        hjb_residual(policy, 0.0, x, policy(0.0, x))


@pytest.mark.parametrize("segment", [1, 4, 100])
@pytest.mark.parametrize("gradient", ["jfb", "implicit", "direct"])
@every_problem
def test_checkpointed_segments_change_nothing_but_memory(name, gradient, segment):
    """The same operations in the same order: equal to the last bit, statistics counted once."""
    found = []
    for options in ({}, {"segment": segment}):
        policy = make(name, gradient=METHODS[gradient])
        states = policy.problem.sample_initial_states(BATCH, generator(1))
        penalties = METHODS[gradient].inner_problem
        result = rollout(policy, states, warm_start=True, penalties=penalties, **options)
        loss = result.cost.mean()
        if result.hjb_penalty is not None:
            loss = loss + result.hjb_penalty.mean()
        loss.backward()
        grads = [p.grad for p in policy.parameters() if p.grad is not None]
        found.append((result, grads))
    (plain, grads), (segmented, others) = found
    assert torch.equal(plain.cost, segmented.cost)
    assert plain.inner.summary() == segmented.inner.summary()
    assert len(grads) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


def test_segments_hold_fewer_bytes_at_once():
    """36 steps in 6 segments: at least half of what lives at the peak is gone."""
    peaks = []
    for segment in (None, 6):
        policy = make("quadrotor", n_agents=8, n_steps=36)
        states = policy.problem.sample_initial_states(16, generator(1))
        fixed = [*policy.parameters(), states]
        with LiveTensorTracker() as live:
            live.track(fixed)
            rollout(policy, states, segment=segment).cost.mean().backward()
        peaks.append(live.peak_bytes)
    assert peaks[1] < 0.5 * peaks[0]


def test_a_segment_is_at_least_one_step():
    policy = make("quadrotor")
    with pytest.raises(ValueError, match=r"`segment` must be .*0"):
        rollout(policy, policy.problem.sample_initial_states(1, generator()), segment=0)


def test_a_warm_start_is_projected_on_the_set_as_it_is_now():
    """Consumption below a habit that has grown has no utility: any start from there is lost."""
    problem = PROBLEMS["consumption"](n_agents=2, dtype=F64)
    policy = policy_for(problem, solver=Newton(tolerance=1e-8), fixed_point_map=ScaledMap())
    z = problem.sample_initial_states(BATCH, generator())
    cold = policy(0.0, z).control.detach()
    found = policy(0.0, z, z[:, 1:] - 0.005)
    assert bool(found.solution.converged.all())
    # Each within 1e-8 / curvature of the maximiser.
    torch.testing.assert_close(found.control, cold, rtol=1e-5, atol=0.0)


def _serves_quadrotors(method) -> bool:
    """Whether the method has an inner problem and can serve quadrotors with Picard."""
    problem, solver = PROBLEMS["quadrotor"](n_agents=2), Picard(tolerance=1e-4)
    reasons = (method.supports(problem), method.supports_solver(solver))
    return method.inner_problem and all(reason is None for reason in reasons)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [g for g in METHODS if _serves_quadrotors(METHODS[g])])
def test_a_rollout_that_is_dropped_leaves_nothing(gradient, monkeypatch):
    """Neither with its backward pass nor without: a cycle through a graph is never collected."""
    alive: weakref.WeakSet = weakref.WeakSet()
    problem = PROBLEMS["quadrotor"](n_agents=2, n_steps=3)
    method, solver = METHODS[gradient], Picard(tolerance=1e-4)
    policy = policy_for(problem, solver=solver, gradient=method)
    build, count = problem.hamiltonian, []

    def watched(*arguments):
        made = build(*arguments)
        alive.add(made)
        count.append(len(alive))
        return made

    monkeypatch.setattr(problem, "hamiltonian", watched)
    x = problem.sample_initial_states(BATCH, generator())
    penalties = isinstance(policy, HamiltonianPolicy)
    result = rollout(policy, x, penalties=penalties)
    assert max(count) > 0
    loss = result.cost.mean()
    (loss + result.hjb_penalty.mean() if penalties else loss).backward()
    del result, loss
    gc.collect()
    assert len(alive) == 0
    result = rollout(policy, x, penalties=penalties)
    del result
    gc.collect()
    assert len(alive) == 0
