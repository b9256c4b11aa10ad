"""The inverted iteration against the same iteration tracked, and against other gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from baselines import DenseLU, Implicit, Reversible, Unrolled
from bench.memory import LiveTensorTracker
from jfbcore.maps import MAPS, BoundMap, FixedPointMap, ScaledMap
from jfbcore.rollout import rollout
from jfbcore.solvers import Newton, Picard, Status
from tests.identities.test_conformance import BOUNDED, Counting
from tests.identities.test_identities import (
    CASES,
    attach,
    contractive_point,
    every_case,
    every_map,
    noise,
    pulled_back,
    relative_error,
    slowness,
    small_policy,
)
from tests.problems.test_conformance import Point


def exactly(iterations: int) -> Picard:
    return Picard(tolerance=None, max_iterations=iterations)


def coupled(bound: BoundMap, start: Tensor, relaxation: float, steps: int) -> tuple[Tensor, Tensor]:
    """y and z after `steps` steps, as the source writes them: two applications of T each."""
    y = z = start
    for _ in range(steps):
        y = (1 - relaxation) * y + relaxation * bound(z)
        z = (1 - relaxation) * z + relaxation * bound(y)
    return y, z


def tracked(
    point: Point, fixed_point_map: FixedPointMap, relaxation: float, iterations: int, v: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The iteration's control after `iterations` applications, and its cotangents by autograd."""
    z, p = (x.detach().clone().requires_grad_() for x in (point.z, point.p))
    bound = fixed_point_map.bind(point.problem.hamiltonian(point.t, z, p))
    start = point.problem.initial_control(point.t, z.detach())
    earlier, control = coupled(bound, start, relaxation, iterations // 2)
    if iterations % 2:  # half a step more
        control = (1 - relaxation) * earlier + relaxation * bound(control)
    return control.detach(), torch.autograd.grad(control, (z, p), v, materialize_grads=True)


@every_case
@every_map
@pytest.mark.parametrize("iterations", [1, 2, 7, 10, 11, 50])
def test_is_autograd_of_the_same_iteration(case, map_name, iterations):
    point = contractive_point(case, 2)
    v = noise(point.u, 1)
    control, expected = tracked(point, MAPS[map_name], 0.8, iterations, v)
    found = attach(point, Reversible(), exactly(iterations), MAPS[map_name])
    scale = point.u.abs().max().item()
    # The same operations: rounding.
    torch.testing.assert_close(found.control, control, rtol=1e-12, atol=1e-13 * scale)
    assert found.iterations == iterations
    parts = pulled_back(point, Reversible(), exactly(iterations), MAPS[map_name], v)
    # Ten inversions amplify rounding by at most 5^10 = 1e7, and what they yield weighs less.
    assert relative_error(parts, expected) < 1e-9


@every_case
@pytest.mark.parametrize("relaxation", [0.3, 0.5, 0.95])
@pytest.mark.parametrize("inversions", [1, 3, None])
def test_is_autograd_whatever_the_settings(case, relaxation, inversions):
    point, iterations = contractive_point(case, 2), 7
    v = noise(point.u, 1)
    estimator = Reversible(relaxation, inversions)
    _, expected = tracked(point, ScaledMap(), relaxation, iterations, v)
    found = pulled_back(point, estimator, exactly(iterations), ScaledMap(), v)
    # 20^7 = 1e9 at most, of which the gradient sees less.
    assert relative_error(found, expected) < 1e-8


@every_case
@pytest.mark.parametrize("map_name", ["scaled", "newton"])
def test_is_unrolled_after_fifty_iterations(case, map_name):
    """Where both have converged: these maps contract by 0.21 or better here, but those of rotor
    quadrotors, which get more iterations."""
    point = contractive_point(case, 2)
    v, enough = noise(point.u, 1), exactly(50 * slowness(point.problem))
    found = pulled_back(point, Reversible(), enough, MAPS[map_name], v)
    expected = pulled_back(point, Unrolled(), enough, MAPS[map_name], v)
    assert relative_error(found, expected) < 1e-6
    exact = pulled_back(point, Implicit(DenseLU()), Newton(tolerance=1e-12), MAPS[map_name], v)
    assert relative_error(found, exact) < 1e-6


@every_case
@every_map
def test_a_tolerance_bounds_the_control_and_its_derivative(case, map_name):
    point = contractive_point(case, 2)
    solver = Picard(tolerance=1e-10 * point.problem.gradient_scale, max_iterations=1000)
    v = noise(point.u, 1)
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
    solution = attach(point, Reversible(), solver, MAPS[map_name], z, p)
    assert solution.status is Status.CONVERGED
    with torch.no_grad():
        again = attach(point, Reversible(), solver, MAPS[map_name])
    assert torch.equal(again.control, solution.control.detach())
    assert again.iterations == solution.iterations
    found = torch.autograd.grad(solution.control, (z, p), v)
    exact = pulled_back(point, Implicit(DenseLU()), Newton(tolerance=1e-12), MAPS[map_name], v)
    # Derivatives lag the control by a factor K, here below 200, and by the Hessian's condition.
    assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("case", BOUNDED)
def test_through_active_bounds(case):
    """A projection inside T: the gradient reaches the state through the bound that holds it."""
    point = BOUNDED[case][0]()
    v = noise(point.u, 1)
    _, expected = tracked(point, ScaledMap(), 0.8, 100, v)
    found = pulled_back(point, Reversible(), exactly(100), ScaledMap(), v)
    assert relative_error(found, expected) < 1e-9
    solver = Picard(tolerance=1e-12, max_iterations=1000)
    exact = pulled_back(point, Implicit(DenseLU()), solver, ScaledMap(), v)
    assert relative_error(found, exact) < 1e-6


@every_case
@pytest.mark.parametrize(("inversions", "replayed"), [(None, 0), (10, 15 + 5)])
def test_applications_of_the_map(case, inversions, replayed):
    """K forwards, K backwards, and what recomputing after 10 and 20 inversions costs: 15 + 5."""
    point, counting = contractive_point(case, 2), Counting(ScaledMap())
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
    found = attach(point, Reversible(inversions=inversions), exactly(25), counting, z, p)
    assert len(counting.calls) == found.iterations == 25
    found.control.sum().backward()
    assert len(counting.calls) == 25 + 25 + replayed


@every_case
def test_only_what_needs_a_gradient_gets_one(case):
    point = contractive_point(case, 2)
    v = noise(point.u, 1)
    into_z, into_p = pulled_back(point, Reversible(), exactly(12), ScaledMap(), v)
    for own, expected in ((0, into_z), (1, into_p)):
        inputs = [x.detach().clone() for x in (point.z, point.p)]
        inputs[own].requires_grad_()
        control = attach(point, Reversible(), exactly(12), ScaledMap(), *inputs).control
        (found,) = torch.autograd.grad(control, inputs[own], v)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not attach(point, Reversible(), exactly(12), ScaledMap()).control.requires_grad


@every_case
def test_drift_is_what_inversion_loses(case):
    point = contractive_point(case, 2)
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))

    def drift(iterations: int, inversions: int | None) -> Tensor:
        estimator = Reversible(inversions=inversions, drifts=[])
        control = attach(point, estimator, exactly(iterations), ScaledMap(), z, p).control
        control.sum().backward()
        (found,) = estimator.drifts
        assert found.shape == point.u.shape[:1]
        return found

    # 5^10 times rounding, and a start that is not the size of what it is measured by.
    assert drift(5, None).max() < 1e-11
    assert drift(50, 10).max() < 1e-7
    # Without recomputing nothing is left of the start; NaN is no small drift.
    assert not (drift(60, None) < 1e-3).all()


@pytest.mark.parametrize("case", CASES)
def test_single_precision_is_as_good_as_its_rounding(case):
    """The sequence is added up in float64 and T meets the numbers it met forwards."""
    point = contractive_point(case, 2)
    problem = CASES[case](n_agents=2, dtype=torch.float32)
    single = Point(problem, point.t, *(x.float() for x in (point.z, point.p, point.u)))
    v = noise(point.u, 1)
    for iterations in (5, 50):
        found = pulled_back(single, Reversible(), exactly(iterations), ScaledMap(), v.float())
        assert all(x.dtype is torch.float32 for x in found)
        _, expected = tracked(point, ScaledMap(), 0.8, iterations, v)
        # A hundred roundings of 6e-8, times the condition of H.
        assert relative_error([x.double() for x in found], expected) < 1e-4


@pytest.mark.slow
@every_case
def test_peak_memory_of_a_step_does_not_depend_on_the_iterations(case):
    """To the byte, the backward pass and what it recomputes included."""

    def peak(iterations: int) -> int:
        policy = small_policy(case, Reversible(), exactly(iterations), n_steps=2, t_final=0.2)
        x = policy.problem.sample_initial_states(4, torch.Generator().manual_seed(0))
        with LiveTensorTracker() as tracker:
            rollout(policy, x).cost.mean().backward()
        return tracker.peak_bytes

    peak(25)  # fills the problem's constants
    assert peak(25) == peak(200)


def test_refuses_what_has_no_inverse():
    for relaxation in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match=r"`relaxation` must be in \(0, 1\)"):
            Reversible(relaxation)
    with pytest.raises(ValueError, match="`inversions` must be"):
        Reversible(inversions=0)
    assert Reversible().supports_solver(Picard()) is None
    assert "use solver picard" in (Reversible().supports_solver(Newton()) or "")
    assert dataclasses.replace(Reversible(), drifts=[]) == Reversible()
