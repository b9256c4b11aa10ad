"""Residuals in one unit, and solves that end where no further step helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jfbcore.extras.captured_rollout import CapturedRollout
from jfbcore.extras.compiled_rollout import Grid
from jfbcore.extras.stepped_rollout import SteppedRollout
from jfbcore.held_out import held_out_states
from jfbcore.jfb import JFB
from jfbcore.maps import FixedPointMap, PlainMap, ScaledMap
from jfbcore.policy import HamiltonianPolicy
from jfbcore.problems import Bicycle, Consumption, Hamiltonian, Quadrotor
from jfbcore.solvers import Anderson, Newton, Picard, Solver, Status
from jfbcore.value_network import ValueNetwork

PAIRS: dict[str, tuple[FixedPointMap, type[Solver]]] = {
    "plain-picard": (PlainMap(), Picard),
    "scaled-picard": (ScaledMap(), Picard),
    "plain-anderson": (PlainMap(), Anderson),
    "newton": (ScaledMap(), Newton),
}


def maximiser(h: Hamiltonian) -> Tensor:
    """The control at which the goods' marginal utility meets its price, by bisection in float64.

    H is separable over goods and, at the costates of the tests, concave.
    """
    low, high = h._bounds()
    for _ in range(200):
        middle = 0.5 * (low + high)
        rising = h.grad(middle) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return 0.5 * (low + high)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("multiple", [2.0, 5.0, 10.0, 100.0])
def test_goods_that_report_convergence_are_accurate(name, multiple):
    """100 goods at multiples of the nominal costate: none is CONVERGED with another control."""
    problem = Consumption(100)
    z = held_out_states(problem, 16)
    p = multiple * problem.initial_costate().expand_as(z)
    fixed_point_map, solver = PAIRS[name]
    tolerance = 1e-4 * problem.gradient_scale
    bound = fixed_point_map.bind(problem.hamiltonian(0.0, z, p))
    found = solver(tolerance=tolerance).solve(bound, problem.initial_control(0.0, z))

    exact = maximiser(problem.hamiltonian(0.0, z.double(), p.double()))
    excess = exact - z[:, 1:].double()
    error = (found.control.double() - exact).abs() / excess
    # A gradient g is an error of g / (gamma price) of the excess; the excess itself is the
    # difference of two float32 numbers.
    price = multiple * problem.nominal_excess**-problem.gamma
    rounding = 4.0 * torch.finfo(torch.float32).eps * (exact / excess).amax(1)
    allowed = 1.5 * tolerance / (problem.gamma * price) + rounding
    assert (error.amax(1) <= allowed)[found.converged].all()
    if name in ("scaled-picard", "newton"):
        assert found.status is Status.CONVERGED


def test_a_bound_that_holds_the_control_leaves_nothing():
    problem = Bicycle(1, dtype=torch.float64)
    z = torch.tensor([[0.0, 0.0, 0.1, 1.0]], dtype=torch.float64)
    # kappa = 20 wants more steering than there is, against it; the acceleration is free.
    p = torch.tensor([[0.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
    bound = ScaledMap().bind(problem.hamiltonian(0.0, z, p))
    steering = -problem.max_steering

    def residual(steering: float, acceleration: float) -> float:
        control = torch.tensor([[steering, acceleration]], dtype=torch.float64)
        return bound.residual(control).item()

    assert residual(steering, -3.0) == 0.0
    assert residual(steering, -3.5) == pytest.approx(0.5)
    # Held by the wrong bound, or by none, the whole gradient counts.
    pull = 20.0 / torch.tensor(problem.max_steering).cos().square().item()
    assert residual(-steering, -3.0) == pytest.approx(-steering + pull, rel=1e-6)
    assert residual(0.0, -3.0) == pytest.approx(20.0)


def quadrotors(multiple: float, dtype: torch.dtype) -> tuple[Quadrotor, Hamiltonian, Tensor]:
    problem = Quadrotor(6, dtype=dtype)
    z = held_out_states(problem, 50)
    costate = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    h = problem.hamiltonian(0.0, z, multiple * costate)
    return problem, h, problem.initial_control(0.0, z)


@pytest.mark.parametrize("solver", [Picard, Newton, Anderson])
def test_a_tolerance_below_rounding_stops_there_and_says_so(solver):
    _, h, start = quadrotors(100.0, torch.float32)
    given: dict[str, Any] = {"tolerance": 1e-4, "max_iterations": 500}
    found = solver(**given).solve(ScaledMap().bind(h), start)
    assert found.status is Status.STALLED
    assert found.iterations < 250
    assert not found.converged.all()
    torch.testing.assert_close(found.control, h.closed_form(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_leaves_zero_at_huge_costates(dtype):
    _, h, start = quadrotors(1e12, dtype)
    found = Newton(tolerance=1e-4).solve(ScaledMap().bind(h), start)
    # The tolerance is 1e-16 of the gradient's terms: nobody can reach it, and it says so.
    assert found.status is Status.STALLED
    rounding = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.control, h.closed_form(), rtol=rounding, atol=rounding)


def test_a_slow_iteration_is_not_taken_for_a_stalled_one():
    """The released step size moves the control by little, and the residual falls all the time."""
    _, h, start = quadrotors(1.0, torch.float32)
    found = Picard(tolerance=1e-4, max_iterations=200).solve(PlainMap(1e-4).bind(h), start)
    assert found.status is Status.MAX_ITERATIONS
    assert found.iterations == 200


def test_a_compiled_solve_stalls_too():
    problem, h, start = quadrotors(100.0, torch.float32)
    _, z, p = h.inputs
    solver = Picard(tolerance=1e-4)

    @torch.compile(backend="eager", fullgraph=True)
    def solve(z: Tensor, p: Tensor, start: Tensor) -> tuple[Tensor, Any]:
        bound = ScaledMap().bind(problem.hamiltonian(0.0, z, p))
        found = solver.solve(bound, start)
        return found.control, found.iterations

    with torch.no_grad():
        control, iterations = solve(z, p, start)
    assert 0 < int(iterations) < 250
    torch.testing.assert_close(control, h.closed_form(), rtol=1e-4, atol=1e-4)


def test_a_rollout_of_counted_steps_takes_no_more_than_help():
    """Untested steps are raised until the tolerance is met; not where rounding is in the way."""
    problem = Quadrotor(1, n_steps=4)
    network = ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0))
    policy = HamiltonianPolicy(
        problem,
        network,
        fixed_point_map=ScaledMap(),
        solver=Picard(tolerance=1e-9),
        gradient=JFB(),
    )
    stepped = SteppedRollout(policy, lambda function: function)
    rollout = CapturedRollout(policy, stepped, capture=False)
    flight = rollout.fly(Grid((8, 12), 4, False), held_out_states(problem, 8))
    assert flight.residual.max() > 1e-9
    assert flight.count < 200
    assert rollout.fly(Grid((8, 12), 4, False), held_out_states(problem, 8)).count == flight.count
