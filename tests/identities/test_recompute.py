"""Time steps that are evaluated again on the way back, against the same ones with their graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines import Implicit, Unrolled, build_policy
from bench.memory import LiveTensorTracker, SavedTensorCounter
from jfbcore.extras.compiled_rollout import CompiledRollout
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import MAPS
from jfbcore.policy import HamiltonianPolicy
from jfbcore.problems import PROBLEMS
from jfbcore.rollout import rollout
from jfbcore.solvers import Picard
from jfbcore.value_network import ValueNetwork

F64 = torch.float64
STEPS, BATCH = 4, 3
PAIRS = {
    "jfb": (JFB(), JFB(recompute=True)),
    "jfb-3": (JFB(3), JFB(3, recompute=True)),
    "implicit": (Implicit(), Implicit(recompute=True)),
}


def make(
    name: str, gradient: GradientEstimator, solver: Picard, map_name: str = "scaled"
) -> tuple[HamiltonianPolicy, Tensor]:
    """A small policy and states that carry a graph."""
    problem = PROBLEMS[name](n_agents=2, n_steps=STEPS, dtype=F64)
    policy = build_policy(
        problem,
        gradient,
        fixed_point_map=MAPS[map_name],
        solver=solver,
        width=8,
        generator=torch.Generator().manual_seed(0),
    )
    assert isinstance(policy, HamiltonianPolicy)
    states = problem.sample_initial_states(BATCH, torch.Generator().manual_seed(1))
    return policy, states.requires_grad_()


def to_tolerance(name: str) -> Picard:
    return Picard(tolerance=1e-6 * PROBLEMS[name](n_agents=2).gradient_scale, max_iterations=300)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("everything", [False, True])
def test_the_gradient_is_that_of_the_step_with_its_graph(name, pair, everything):
    """`everything`: warm starts, penalties and a derivative of what the rollout records."""
    found = []
    for gradient in PAIRS[pair]:
        policy, x = make(name, gradient, to_tolerance(name))
        options = dict.fromkeys(("warm_start", "penalties", "record"), everything)
        result = rollout(policy, x, **options)
        loss = result.cost.mean()
        if everything:
            loss = loss + result.hjb_penalty.mean() + result.terminal_penalty.mean()
            loss = loss + result.controls.square().sum() + result.states.sum()
        inputs = [x, *policy.parameters()]
        slopes = torch.autograd.grad(loss, inputs, materialize_grads=True)
        found.append((loss.detach(), torch.cat([s.flatten() for s in slopes]), result.inner))
    (loss, slope, inner), (again, other, repeated) = found
    assert slope.norm() > 0
    # The same operations at the same numbers: sums in another order at most.
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(other, slope, rtol=0, atol=1e-12 * slope.abs().max().item())
    assert repeated.iterations == inner.iterations
    assert all(torch.equal(a, b) for a, b in zip(repeated.residuals, inner.residuals, strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_kept_is_state_and_control_whatever_the_iterations(name, pair):
    """n + m numbers a sample and time step to the byte, and what the terminal cost needs."""
    for iterations in (5, 50):
        solver = Picard(tolerance=None, max_iterations=iterations)
        policy, x = make(name, PAIRS[pair][1], solver)
        fixed = [*policy.parameters(), x]
        with SavedTensorCounter(exclude=fixed) as saved:
            result = rollout(policy, x)
        final = result.final_state.detach().requires_grad_()
        with SavedTensorCounter(exclude=fixed) as terminal:
            kept = policy.problem.terminal_cost(final)
        assert kept.shape == (BATCH,)
        # The initial states are the caller's, the final ones only the terminal cost's.
        numbers = (STEPS - 1) * policy.problem.state_dim + STEPS * policy.problem.control_dim
        assert saved.bytes - terminal.bytes == 8 * BATCH * numbers


def test_the_peak_is_that_of_one_time_step():
    """Of the graph no more is alive at a time than a time step's, and unrolling keeps them all."""
    peaks = {}
    for name, gradient in (("kept", JFB()), ("again", JFB(recompute=True)), ("all", Unrolled())):
        policy, x = make("rotor-quadrotor", gradient, to_tolerance("rotor-quadrotor"))
        with LiveTensorTracker() as live:
            rollout(policy, x.detach()).cost.mean().backward()
        peaks[name] = live.peak_bytes
    assert peaks["again"] < peaks["kept"] < peaks["all"]


def test_nothing_is_solved_on_the_way_back(monkeypatch):
    solved, swept = [], []
    solve, costate = Picard.solve, ValueNetwork.costate

    def counted(self, fixed_point_map, initial):
        solved.append(initial)
        return solve(self, fixed_point_map, initial)

    def counted_costate(self, t, z):
        swept.append(z)
        return costate(self, t, z)

    monkeypatch.setattr(Picard, "solve", counted)
    monkeypatch.setattr(ValueNetwork, "costate", counted_costate)
    policy, x = make("rotor-quadrotor", JFB(recompute=True), to_tolerance("rotor-quadrotor"))
    cost = rollout(policy, x).cost.mean()
    assert len(solved) == len(swept) == STEPS
    cost.backward()
    assert len(solved) == STEPS
    assert len(swept) == 2 * STEPS


def test_parameters_that_have_changed_are_noticed():
    policy, x = make("quadrotor", JFB(recompute=True), to_tolerance("quadrotor"))
    cost = rollout(policy, x).cost.mean()
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cost.backward()


def test_compiled_rollouts_refuse_it():
    policy, _ = make("quadrotor", JFB(recompute=True), to_tolerance("quadrotor"))
    with pytest.raises(ValueError, match="`recompute` needs the eager one"):
        CompiledRollout(policy)
